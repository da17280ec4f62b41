"""Fused linear cross-entropy for GPUs: tiles of logits in the forward, chunks of the vocabulary backward.

Forward: one tile of logits (tokens x vocabulary) a program, of which only the rows' log-sum-exp and the
targets' logits leave the chip. Backward: the log-sum-exp is known, so the logits' gradient of any part of
the vocabulary can be computed alone: it goes to a 16-bit workspace [N, chunk], dW of that part is written
once, and dH adds up over chunks in float32. Plain stores only, no atomics: the result is deterministic.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Kernels are not Python: their calls, constants and tensors have no types that pyright knows.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from lcl_composer.kernels.backend import Reduction, matmul_dtype
from lcl_composer.kernels.linear_cross_entropy_torch import Settings
from lcl_composer.kernels.log_sum_exp_triton import log_sum_exp
from lcl_composer.kernels.matmul_triton import matmul_into
from lcl_composer.kernels.tiles import (
    launch_options,
    tile_count,
    tiles_for,
    workspace,
    workspace_scale,
)
from lcl_composer.kernels.tiles_triton import product_tile, store_tile, visit


def linear_cross_entropy_triton(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    z_loss: float,
    label_smoothing: float,
    reduction: Reduction,
) -> Tensor:
    """See :func:`lcl_composer.kernels.linear_cross_entropy`.

    Raises:
        ValueError: for float64, which tensor cores do not multiply.
    """
    settings = Settings(ignore_index, z_loss, label_smoothing, matmul_dtype(hidden, weight))
    if settings.dtype == torch.float64:
        raise ValueError("float64 runs on the loss backend 'torch' only")
    bias = None if bias is None else bias.contiguous()
    losses: Tensor = _Fused.apply(  # type: ignore[assignment]
        hidden, weight, bias, targets.contiguous(), settings
    )
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / (targets != ignore_index).sum().clamp(min=1)


class _Fused(torch.autograd.Function):
    """Loss of each token [N]; the backward recomputes the logits."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, settings: Settings
    ) -> Tensor:
        if hidden.shape[0] == 0:
            lse = losses = hidden.new_zeros(0, dtype=torch.float32)
        else:
            lse, losses = _forward(
                _operand(hidden, settings), _operand(weight, settings), bias, targets, settings
            )
        ctx.save_for_backward(hidden, weight, bias, targets, lse)
        ctx.settings = settings
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias, targets, lse = ctx.saved_tensors
        empty = torch.empty_like if hidden.shape[0] else torch.zeros_like
        outputs = [
            None if t is None or not needed else empty(t, memory_format=torch.contiguous_format)
            for t, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        ]
        if hidden.shape[0]:
            _backward(hidden, weight, bias, targets, lse, grad, ctx.settings, *outputs)
        return (*outputs, None, None)


def _operand(tensor: Tensor, settings: Settings) -> Tensor:
    return tensor.to(settings.dtype).contiguous()


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Return LSE [N] and losses [N]."""
    n, vocab = hidden.shape[0], weight.shape[0]
    tiles = tiles_for("logits", hidden)
    tiles_n = tile_count(vocab, tiles.n)
    smooth = settings.label_smoothing > 0
    partials = hidden.new_empty(tiles_n, n, dtype=torch.float32)
    sums = torch.empty_like(partials) if smooth else partials
    target_logits = hidden.new_zeros(n, dtype=torch.float32)
    _logit_tiles[(tile_count(n, tiles.m) * tiles_n,)](
        hidden, weight, weight if bias is None else bias, targets, partials, sums, target_logits,
        n, vocab, hidden.shape[1],
        BIAS=bias is not None, SMOOTH=smooth, MASK=hidden.shape[1] % tiles.k != 0,
        **launch_options(tiles, hidden),
    )  # fmt: skip
    lse = log_sum_exp(partials)
    losses = lse - (1.0 - settings.label_smoothing) * target_logits
    if smooth:
        losses -= settings.label_smoothing / vocab * sums.sum(0)
    losses += settings.z_loss * lse.square()
    return lse, losses.masked_fill_(targets == settings.ignore_index, 0.0)


def _backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    lse: Tensor,
    grad: Tensor,
    settings: Settings,
    d_hidden: Tensor | None,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
) -> None:
    """Fill the gradients, a chunk of the vocabulary at a time."""
    h, w = _operand(hidden, settings), _operand(weight, settings)
    row_weight, scale = _normalised(grad, targets, settings)
    scale = scale / workspace_scale(h)
    tiles = tiles_for("logits", h)
    space = workspace(h, weight.shape[0])
    width = space.shape[1]
    partial = None if d_hidden is None else h.new_empty(h.shape, dtype=torch.float32)
    for start in range(0, weight.shape[0], width):
        part = slice(start, min(start + width, weight.shape[0]))
        chunk = space[:, : part.stop - start]
        _logit_gradient_tiles[(tile_count(h.shape[0], tiles.m) * tile_count(chunk.shape[1], tiles.n),)](
            h, w, w if bias is None else bias, targets, lse, row_weight, space,
            h.shape[0], weight.shape[0], h.shape[1], start, part.stop, width,
            settings.z_loss, settings.label_smoothing, workspace_scale(h),
            BIAS=bias is not None, MASK=h.shape[1] % tiles.k != 0, **launch_options(tiles, h),
        )  # fmt: skip
        if d_weight is not None:
            matmul_into(d_weight[part], chunk[: h.shape[0]].T, h, scale=scale)
        if d_bias is not None:
            d_bias[part] = chunk[: h.shape[0]].sum(0, dtype=torch.float32) * scale
        if d_hidden is not None:
            matmul_into(partial, chunk[: h.shape[0]], w[part], add=start > 0)
    if d_hidden is not None:
        torch.mul(partial, scale, out=d_hidden)


def _normalised(grad: Tensor, targets: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Split the upstream gradient [N] into row weights [N] of at most 1 and a 0-dim factor for the outputs.

    The mean's 1 / N would push the workspace towards fp16's smallest numbers.
    """
    kept = torch.where(targets == settings.ignore_index, 0.0, grad.float())
    largest = kept.abs().amax()
    largest = torch.where(largest == 0, 1.0, largest)
    return kept / largest, largest


@triton.jit(do_not_specialize=["n"])
def _logit_tiles(
    hidden_ptr, weight_ptr, bias_ptr, targets_ptr, partials_ptr, sums_ptr, target_logits_ptr,
    n, vocab, dim,
    BIAS: tl.constexpr, SMOOTH: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    MASK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of logits: its rows' log-sum-exp (and sum), and the logits of targets that lie in it."""
    tile_m, tile_n = visit(tl.cdiv(n, BM), tl.cdiv(vocab, BN), GROUP)
    rows = tile_m * BM + tl.arange(0, BM)
    columns = tile_n * BN + tl.arange(0, BN)
    z = product_tile(
        hidden_ptr, weight_ptr, tl.minimum(rows, n - 1), tl.minimum(columns, vocab - 1),
        dim, BM, BN, BK, MASK, PRECISION, UPCAST,
    )  # fmt: skip
    if BIAS:
        z += tl.load(bias_ptr + tl.minimum(columns, vocab - 1)).to(tl.float32)[None, :]
    inside = rows < n
    offsets = tile_n.to(tl.int64) * n + rows
    if SMOOTH:
        real_z = tl.where((columns < vocab)[None, :], z, 0.0)
        tl.store(sums_ptr + offsets, tl.sum(real_z, 1), mask=inside)
    z = tl.where((columns < vocab)[None, :], z, float("-inf"))
    target = tl.load(targets_ptr + rows, mask=inside, other=-1) - tile_n * BN
    hit = target[:, None] == tl.arange(0, BN)[None, :]
    own = inside & (target >= 0) & (target < BN)
    tl.store(target_logits_ptr + rows, tl.sum(tl.where(hit, z, 0.0), 1), mask=own)
    maximum = tl.max(z, 1)
    lse = maximum + tl.log(tl.sum(tl.exp(z - maximum[:, None]), 1))
    tl.store(partials_ptr + offsets, lse, mask=inside)


@triton.jit(do_not_specialize=["n", "start", "stop"])
def _logit_gradient_tiles(
    hidden_ptr, weight_ptr, bias_ptr, targets_ptr, lse_ptr, row_weight_ptr, workspace_ptr,
    n, vocab, dim, start, stop, width, z_loss, smoothing, workspace_scale,
    BIAS: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    MASK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of d loss / d logits of the vocabulary from start to stop, into the workspace."""
    tile_m, tile_n = visit(tl.cdiv(n, BM), tl.cdiv(stop - start, BN), GROUP)
    rows = tile_m * BM + tl.arange(0, BM)
    local = tile_n * BN + tl.arange(0, BN)
    columns = tl.minimum(start + local, vocab - 1)
    inside = rows < n
    z = product_tile(
        hidden_ptr, weight_ptr, tl.minimum(rows, n - 1), columns,
        dim, BM, BN, BK, MASK, PRECISION, UPCAST,
    )  # fmt: skip
    if BIAS:
        z += tl.load(bias_ptr + columns).to(tl.float32)[None, :]
    lse = tl.load(lse_ptr + rows, mask=inside, other=0.0)
    row_weight = tl.load(row_weight_ptr + rows, mask=inside, other=0.0) * workspace_scale
    target = tl.load(targets_ptr + rows, mask=inside, other=-1) - start
    hit = target[:, None] == local[None, :]
    gradient = tl.exp(z - lse[:, None]) * (row_weight * (1.0 + 2.0 * z_loss * lse))[:, None]
    gradient -= tl.where(hit, (row_weight * (1.0 - smoothing))[:, None], 0.0)
    gradient -= (row_weight * smoothing / vocab)[:, None]
    kept = inside[:, None] & (start + local < stop)[None, :]
    gradient = tl.where(kept, gradient, 0.0)
    store_tile(workspace_ptr, gradient, tile_m, local, width, BM)
