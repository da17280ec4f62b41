"""Linear layer and cross-entropy in one op, without the logits of the whole batch in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from lcl_composer.kernels.backend import Reduction, resolve_backend
from lcl_composer.kernels.linear_cross_entropy_torch import linear_cross_entropy_torch


# Opaque to torch.compile: the chunk loop would be unrolled into the graph. Dynamo breaks the graph here.
@torch.compiler.disable
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of ``hidden @ weight.T + bias`` against ``targets``.

    With logits ``z_v``, ``LSE = log sum_v e^(z_v)`` and smoothing ``e``, a token's loss is
    ``LSE - (1 - e) z_target - e mean_v(z_v) + z_loss LSE^2`` (z-loss: PaLM, arXiv 2204.02311, section 5).

    Args:
        hidden: [N, D] activations; N may be 0.
        weight: [V, D] classifier, may have another dtype than ``hidden``; its gradient has its own dtype.
        targets: [N] int64 in [0, V) or ``ignore_index``.
        bias: [V] or None.
        ignore_index: the target of tokens that have no loss and no gradient.
        z_loss: weight of the squared log-normaliser.
        label_smoothing: share of the target spread evenly over the vocabulary, as in torch.
        reduction: ``"mean"`` over the tokens not ignored (0 when there is none, where torch gives NaN),
            ``"sum"`` or ``"none"`` ([N], zeros where ignored).
        backend: ``"torch"``, ``"triton"`` or None (by device).

    Returns:
        A scalar, or [N], in float32 (float64 for float64 inputs). It has first derivatives only.

    Raises:
        ValueError: for shapes that do not fit, or an unknown reduction or backend.
    """
    _check(hidden, weight, targets, bias, reduction)
    op = linear_cross_entropy_torch
    if resolve_backend(hidden.device, backend) == "triton":
        from lcl_composer.kernels.linear_cross_entropy_triton import linear_cross_entropy_triton

        op = linear_cross_entropy_triton
    return op(hidden, weight, targets, bias, ignore_index, z_loss, label_smoothing, reduction)


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, reduction: str) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden must be [N, D] and weight [V, D]; got {[*hidden.shape]}, {[*weight.shape]}")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets must be [N] = {[hidden.shape[0]]}; got {[*targets.shape]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [V] = {[weight.shape[0]]}; got {[*bias.shape]}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"unknown reduction {reduction!r}; choose 'mean', 'sum' or 'none'")
