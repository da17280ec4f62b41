"""L_con: symmetric InfoNCE between images and contexts of the global batch, by blocks of rows.

Rank r compares its own images with the contexts of all ranks. A row's normaliser is then complete on the
rank; a column's is merged over ranks from maxima and sums. Only contexts are gathered, and only their
gradient is scattered back, so a rank sends less than half of what gathering both sides would cost.
"""

from __future__ import annotations

from functools import partial

import torch.distributed as dist
from torch import Tensor

from lcl_composer.kernels import info_nce
from lcl_composer.losses.gather import merge_log_sum_exp
from lcl_composer.losses.generation import share
from lcl_composer.losses.rows import row_block


def contrastive_loss(
    images: Tensor,
    contexts: Tensor,
    scale: Tensor,
    *,
    total: Tensor | int | None = None,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """This rank's share of the symmetric InfoNCE of the global batch (LCL, arXiv 2406.07543, section 3.2).

    The returned values sum over ranks to the loss of the global batch, and the gradients of that sum with
    respect to this rank's features are exact; a replicated parameter's gradient is a share, to be summed
    over ranks. Every rank must scale its share by the same factor before the backward. With several
    microbatches each is its own set of negatives, and their shares add up.

    Args:
        images: [P, E] pooled latents of this rank's anchored images. P may differ by rank and may be 0;
            such a rank must call all the same, with features that need a gradient if the others' do.
        contexts: [P, E] language-model outputs at their anchors.
        scale: 0-dim tensor, the inverse temperature (exponentiated and clamped by the caller).
        total: anchored images of the global batch, over ranks and microbatches (taken as 1 if it is 0).
            None: those of this call, over ranks.
        group: process group, None for the default one.
        backend: ``"torch"``, ``"triton"`` or None (by device).

    Returns:
        A scalar in float32. Both features are L2-normalised here, in float32.
    """
    block = row_block(images, contexts, group)
    loss = info_nce(
        block.images, block.contexts, scale,
        row_offset=block.offset, reduction="sum", backend=backend,
        merge_columns=partial(merge_log_sum_exp, group=group) if block.distributed else None,
    )  # fmt: skip
    return share(loss, block.contexts.shape[0] if total is None else total)
