"""L_gen: next-token prediction of the text, averaged over the tokens of the global batch."""

from __future__ import annotations

import torch
from torch import Tensor

from lcl_composer.kernels import linear_cross_entropy


def generation_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    total: Tensor | int | None = None,
    bias: Tensor | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """This rank's and microbatch's share of the global token mean.

    The sum of the returned values over all ranks and microbatches is the loss of the global batch; an
    average over ranks would weigh a rank's tokens by how few it has.

    Args:
        hidden: [N, D] outputs of the language model at the positions that predict; N may be 0.
        weight: [V, D] output embedding.
        targets: [N] int64, -100 where there is nothing to predict.
        total: targets of the global batch, over all ranks and microbatches (taken as 1 if it is 0). None:
            the targets given here, the mean of one process and one microbatch.
        bias: [V] or None.
        z_loss: weight of the squared log-normaliser.
        label_smoothing: share of the target spread over the vocabulary.
        backend: ``"torch"``, ``"triton"`` or None (by device).

    Returns:
        A scalar in float32. With N = 0 it is 0 and still depends on ``hidden`` and ``weight``.

    Raises:
        TypeError: if FSDP2 has sharded ``weight`` when the loss is computed.
    """
    if hasattr(weight, "full_tensor"):
        raise TypeError(
            "the output embedding is sharded when the loss is computed; leave it to FSDP's root, which "
            "stays whole between forward and backward"
        )
    loss = linear_cross_entropy(
        hidden, weight, targets,
        bias=bias, z_loss=z_loss, label_smoothing=label_smoothing,
        reduction="mean" if total is None else "sum", backend=backend,
    )  # fmt: skip
    return loss if total is None else share(loss, total)


def share(loss: Tensor, total: Tensor | int) -> Tensor:
    """``loss`` over the global count, which is taken as 1 where nothing was counted."""
    if isinstance(total, Tensor):
        return loss / torch.clamp(total.to(loss.device), min=1)
    return loss / max(total, 1)
