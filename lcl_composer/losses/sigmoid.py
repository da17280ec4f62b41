"""The pairwise sigmoid loss (SigLIP) as L_con, over ranks by the same blocks of rows as InfoNCE."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from lcl_composer.kernels import sigmoid_loss
from lcl_composer.losses.generation import share
from lcl_composer.losses.rows import row_block


def sigmoid_contrastive_loss(
    images: Tensor,
    contexts: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    total: Tensor | int | None = None,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """This rank's share of the pairwise sigmoid loss of the global batch (arXiv 2303.15343).

    The returned values sum over ranks to the loss of the global batch; gradients are as in
    :func:`lcl_composer.losses.contrastive_loss`.

    Args:
        images: [P, E] pooled latents of this rank's anchored images; P may differ by rank and may be 0.
        contexts: [P, E] language-model outputs at their anchors.
        scale: 0-dim tensor, the inverse temperature (exponentiated and clamped by the caller).
        bias: 0-dim tensor added to every logit (the paper starts it at -10).
        total: anchored images of the global batch, over ranks and microbatches (taken as 1 if it is 0).
            None: those of this call, over ranks.
        group: process group, None for the default one.
        backend: ``"torch"``, ``"triton"`` or None (by device).

    Returns:
        A scalar in float32. Both features are L2-normalised here, in float32.
    """
    block = row_block(images, contexts, group)
    loss = sigmoid_loss(
        block.images, block.contexts, scale, bias,
        row_offset=block.offset, reduction="sum", backend=backend,
    )  # fmt: skip
    return share(loss, block.contexts.shape[0] if total is None else total)
