"""Cross-entropy of the classes, averaged over the images of the global batch, for several heads at once."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lcl_composer.losses.generation import share


def classification_loss(logits: Tensor, labels: Tensor, total: Tensor | int) -> Tensor:
    """This rank's and microbatch's share of the cross-entropy.

    The value is the mean over heads; the gradient of each head is that of its own loss, as if it were trained
    alone.

    Args:
        logits: [G, I, C] of G heads.
        labels: [I] int64.
        total: Images of the global batch, over all ranks and microbatches (taken as 1 if it is 0).

    Returns:
        A scalar in float32; with I = 0 it is 0 and still depends on ``logits``.
    """
    heads, images, _ = logits.shape
    losses_GI = F.cross_entropy(logits.flatten(0, 1).float(), labels.repeat(heads), reduction="none").view(
        heads, images
    )
    each_G = share(losses_GI.sum(1), total)
    together = each_G.sum()
    return together - (together - each_G.mean()).detach() if heads > 1 else together
