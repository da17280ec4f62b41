"""Plain-PyTorch twin of the fused linear cross-entropy: chunks of tokens, one chunk's logits at a time.

Where the reduction is a mean or a sum, a token's gradient is known up to one scalar as soon as its logits
are, so the forward computes it on the spot (3 matrix products, nothing kept but dH and dW). For ``"none"``
the backward recomputes the logits (4 products). Under ``no_grad`` only the loss is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lcl_composer.kernels.backend import (
    Reduction,
    accumulation_dtype,
    exact_half_products,
    matmul_dtype,
    upcast,
)

#: Tokens a chunk: 512 x 49,411 fp32 logits are 101 MB, as much as dW at D = 512.
CHUNK = 512


@dataclass(frozen=True)
class Settings:
    """What shapes the loss besides its tensors."""

    ignore_index: int
    z_loss: float
    label_smoothing: float
    dtype: torch.dtype  # of the values that enter the matrix products


@dataclass
class Gradients:
    """Accumulators in the accumulation dtype; None where the caller wants no gradient."""

    hidden: Tensor | None  # [N, D]
    weight: Tensor | None  # [V, D]
    bias: Tensor | None  # [V]


def linear_cross_entropy_torch(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    z_loss: float,
    label_smoothing: float,
    reduction: Reduction,
) -> Tensor:
    """See :func:`lcl_composer.kernels.linear_cross_entropy`."""
    settings = Settings(ignore_index, z_loss, label_smoothing, matmul_dtype(hidden, weight))
    with torch.autocast(hidden.device.type, enabled=False):
        if reduction == "none":
            return _PerToken.apply(hidden, weight, bias, targets, settings)  # type: ignore[return-value]
        total: Tensor = _Total.apply(  # type: ignore[assignment]
            hidden, weight, bias, targets, settings, torch.is_grad_enabled()
        )
        if reduction == "sum":
            return total
        return total / (targets != ignore_index).sum().clamp(min=1)


class _Total(torch.autograd.Function):
    """The sum over tokens; gradients are computed in the forward."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        settings: Settings,
        grad_enabled: bool,
    ) -> Tensor:
        grads = _empty_gradients(hidden, weight, bias, ctx.needs_input_grad if grad_enabled else (False,) * 3)
        losses = _sweep(hidden, weight, bias, targets, settings, grads, row_weights=None)
        ctx.save_for_backward(grads.hidden, grads.weight, grads.bias)
        ctx.dtypes = [t.dtype if t is not None else None for t in (hidden, weight, bias)]
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # Not in place: the buffers must survive a second backward of a retained graph.
        scaled = [
            None if saved is None else (saved * grad).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


class _PerToken(torch.autograd.Function):
    """One loss a token; the backward recomputes the logits."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, settings: Settings
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.settings = settings
        return _sweep(hidden, weight, bias, targets, settings, Gradients(None, None, None), row_weights=None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias, targets = ctx.saved_tensors
        grads = _empty_gradients(hidden, weight, bias, ctx.needs_input_grad)
        _sweep(hidden, weight, bias, targets, ctx.settings, grads, row_weights=grad)
        pairs = ((grads.hidden, hidden), (grads.weight, weight), (grads.bias, bias))
        return (*(None if g is None else g.to(t.dtype) for g, t in pairs), None, None)


def _empty_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]
) -> Gradients:
    dtype = accumulation_dtype(torch.promote_types(hidden.dtype, weight.dtype))
    return Gradients(
        hidden=hidden.new_empty(hidden.shape, dtype=dtype) if needed[0] else None,
        weight=weight.new_zeros(weight.shape, dtype=dtype) if needed[1] else None,
        bias=bias.new_zeros(bias.shape, dtype=dtype) if bias is not None and needed[2] else None,
    )


def _sweep(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    settings: Settings,
    grads: Gradients,
    row_weights: Tensor | None,
) -> Tensor:
    """Run over the tokens in chunks; return their losses [N] and fill ``grads`` (weighted by row_weights)."""
    weight = upcast(weight.detach(), settings.dtype)
    bias = None if bias is None else bias.detach().to(weight.dtype)
    losses = hidden.new_zeros(hidden.shape[0], dtype=weight.dtype)
    buffer = weight.new_empty(min(CHUNK, hidden.shape[0]), weight.shape[0])
    kept = targets != settings.ignore_index
    # Where all are kept a pass over the logits is saved; a GPU would have to be waited for to know.
    if row_weights is not None or hidden.device.type != "cpu" or not kept.all():
        row_weights = kept.to(weight.dtype) if row_weights is None else row_weights * kept
    with exact_half_products(settings.dtype):
        for start in range(0, hidden.shape[0], CHUNK):
            rows = slice(start, start + CHUNK)
            chunk = upcast(hidden[rows].detach(), settings.dtype)  # [C, D]
            logits = torch.mm(chunk, weight.T, out=buffer[: chunk.shape[0]])  # [C, V]
            if bias is not None:
                logits += bias
            index = torch.where(kept[rows], targets[rows], 0).unsqueeze(1)  # [C, 1]
            losses[rows], lse = _losses(logits, index, settings)
            if grads.hidden is None and grads.weight is None and grads.bias is None:
                continue
            row_weight = None if row_weights is None else row_weights[rows]
            _logit_gradient_(logits, index, lse, row_weight, settings)
            _accumulate(grads, rows, logits, chunk, weight)
    return losses.masked_fill_(~kept, 0.0)


def _losses(logits: Tensor, index: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return losses [C] and LSE [C]; ``logits`` [C, V] become probabilities in place."""
    smoothing = settings.label_smoothing
    loss = logits.gather(1, index).squeeze(1).mul(smoothing - 1.0)
    if smoothing:
        loss -= smoothing * logits.mean(1)
    maximum = logits.amax(1)
    # One pass in cache for maximum, sum and quotient. The largest probability is at least 1 / V, so that the
    # normaliser can be read off it, where that of the target may have underflowed.
    torch.softmax(logits, 1, out=logits)
    lse = maximum - logits.amax(1).log_()
    return loss + lse + settings.z_loss * lse.square(), lse


def _logit_gradient_(
    probabilities: Tensor, index: Tensor, lse: Tensor, row_weight: Tensor | None, settings: Settings
) -> None:
    """Turn probabilities [C, V] into d loss / d z in place, each row times ``row_weight`` [C] (None: 1)."""
    weight = torch.ones_like(lse) if row_weight is None else row_weight
    if row_weight is not None or settings.z_loss:
        probabilities.mul_((weight * (1.0 + 2.0 * settings.z_loss * lse)).unsqueeze(1))
    smoothing = settings.label_smoothing
    probabilities.scatter_add_(1, index, (weight * (smoothing - 1.0)).unsqueeze(1))
    if smoothing:
        probabilities.sub_((weight * (smoothing / probabilities.shape[1])).unsqueeze(1))


def _accumulate(grads: Gradients, rows: slice, dlogits: Tensor, chunk: Tensor, weight: Tensor) -> None:
    if grads.hidden is not None:
        torch.mm(dlogits, weight, out=grads.hidden[rows])
    if grads.weight is not None:
        grads.weight.addmm_(dlogits.T, chunk)
    if grads.bias is not None:
        grads.bias += dlogits.sum(0)
