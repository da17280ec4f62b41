"""A rank's block of the similarity matrix: its own images against the contexts of all ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lcl_composer.kernels.backend import matmul_dtype
from lcl_composer.losses.gather import gather_counts, gather_rows, world_size


class RowBlock(NamedTuple):
    """Features ready for the contrastive ops."""

    images: Tensor  # [P, E] normalised, this rank's; [P, Q, E] where an image has several features
    contexts: Tensor  # [M, E] normalised, of all ranks in rank order
    offset: int  # the context that belongs to image 0
    distributed: bool  # whether contexts came from other ranks too


def row_block(images: Tensor, contexts: Tensor, group: dist.ProcessGroup | None) -> RowBlock:
    """Normalise features of images, [P, E] or [P, Q, E], and of contexts, [P, E], and gather the latter.

    They are normalised in float32. What travels is the dtype that enters the matrix product: half the bytes
    under autocast.

    Raises:
        ValueError: if the two do not go together.
    """
    several = images.ndim == 3 and images.shape[1] > 0
    one = images[:, 0] if several else images
    if one.shape != contexts.shape or one.ndim != 2:
        raise ValueError(
            f"images must be [P, E] or [P, Q, E], contexts [P, E]; got {[*images.shape]}, {[*contexts.shape]}"
        )
    dtype = matmul_dtype(images, contexts)
    images, contexts = _normalise(images, dtype), _normalise(contexts, dtype)
    if world_size(group) == 1:
        return RowBlock(images, contexts, 0, distributed=False)
    counts = gather_counts(images.shape[0], group)
    gathered = gather_rows(contexts, counts, group)
    return RowBlock(images, gathered, sum(counts[: dist.get_rank(group)]), distributed=True)


def _normalise(features: Tensor, dtype: torch.dtype) -> Tensor:
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1).to(dtype)
