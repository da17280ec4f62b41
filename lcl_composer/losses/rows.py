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

    images: Tensor  # [P, E] normalised, this rank's
    contexts: Tensor  # [M, E] normalised, of all ranks in rank order
    offset: int  # the context that belongs to image 0
    distributed: bool  # whether contexts came from other ranks too


def row_block(images: Tensor, contexts: Tensor, group: dist.ProcessGroup | None) -> RowBlock:
    """Normalise both features [P, E] in float32 and gather the contexts of all ranks.

    What travels is the dtype that enters the matrix product: half the bytes under autocast.

    Raises:
        ValueError: if the two are not of one shape [P, E].
    """
    if images.shape != contexts.shape or images.ndim != 2:
        raise ValueError(
            f"images and contexts must both be [P, E]; got {[*images.shape]}, {[*contexts.shape]}"
        )
    dtype = matmul_dtype(images, contexts)
    images, contexts = _normalise(images, dtype), _normalise(contexts, dtype)
    if world_size(group) == 1:
        return RowBlock(images, contexts, 0, distributed=False)
    counts = gather_counts(images.shape[0], images.device, group)
    gathered = gather_rows(contexts, counts, group)
    return RowBlock(images, gathered, sum(counts[: dist.get_rank(group)]), distributed=True)


def _normalise(features: Tensor, dtype: torch.dtype) -> Tensor:
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1).to(dtype)
