"""L_con where an image has several features, of which the one nearest to a context counts (BLIP-2)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from lcl_composer.losses.gather import merge_log_sum_exp
from lcl_composer.losses.generation import share
from lcl_composer.losses.rows import row_block


def several_contrastive_loss(
    images: Tensor,
    contexts: Tensor,
    scale: Tensor,
    *,
    total: Tensor | int | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """This rank's share of the symmetric InfoNCE between sets of features and contexts.

    The similarity of an image and a context is the greatest of those between its Q features and the context
    (BLIP-2, arXiv 2301.12597, section 3.1). Values and gradients over ranks are as in
    :func:`lcl_composer.losses.contrastive_loss`. No kernel is fused here: P x Q x M similarities are formed,
    with M contexts over all ranks.

    Args:
        images: [P, Q, E] features of this rank's images; P may differ by rank and may be 0.
        contexts: [P, E] features of what belongs to them.
        scale: 0-dim tensor, the inverse temperature.
        total: images of the global batch, over ranks and microbatches (taken as 1 if it is 0). None: those
            of this call, over ranks.
        group: process group, None for the default one.

    Returns:
        A scalar in float32. Both features are L2-normalised here, in float32.
    """
    block = row_block(images, contexts, group)
    similarity_PM = (block.images @ block.contexts.T).amax(1)
    logits_PM = scale * similarity_PM.to(torch.promote_types(similarity_PM.dtype, torch.float32))
    own = slice(block.offset, block.offset + len(logits_PM))
    with torch.no_grad():
        columns_M = logits_PM.logsumexp(0)
        if block.distributed:
            columns_M = merge_log_sum_exp(columns_M, group)
        shares_PM = (logits_PM - columns_M).exp()  # this rank's part of each column's softmax
    # The value is that of the columns of the own contexts, the gradient that of the own rows of all columns.
    inner = (shares_PM * logits_PM).sum()
    columns = inner - inner.detach() + columns_M[own].sum()
    matching = logits_PM.diagonal(block.offset).sum()
    loss = (logits_PM.logsumexp(1).sum() + columns) / 2 - matching
    return share(loss, logits_PM.shape[1] if total is None else total)
