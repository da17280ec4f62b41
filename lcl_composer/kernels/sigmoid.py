"""The pairwise sigmoid loss (SigLIP) of a block of rows against all columns, without the matrix in memory."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lcl_composer.kernels import sigmoid_torch
from lcl_composer.kernels.backend import matmul_dtype, resolve_backend, upcast
from lcl_composer.kernels.pairs import count_pairs, pair_check


@torch.compiler.disable
def sigmoid_loss(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    row_offset: int = 0,
    column_mask: Tensor | None = None,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    """Pairwise sigmoid loss (arXiv 2303.15343, equation 1).

    ``sum_ij log(1 + e^(-y_ij (scale <rows_i, columns_j> + bias)))``, with y = 1 where ``j = row_offset + i``
    and -1 elsewhere. It has no normaliser over a row or column, so blocks of rows simply add up.

    Args:
        rows: [n, D], normalised by the caller; n may be 0.
        columns: [m, D], ``m >= row_offset + n``.
        scale: 0-dim tensor.
        bias: 0-dim tensor (the paper starts at -10).
        row_offset: the column that row 0 belongs to.
        column_mask: [m] bool; False: no pair with this column is counted.
        reduction: ``"mean"`` divides the sum by the number of matching pairs (at least 1), as the paper does;
            ``"sum"`` does not.
        backend: ``"torch"``, ``"triton"`` or None (by device).

    Returns:
        A scalar in float32 (float64 for float64 inputs). It has first derivatives only.

    Raises:
        ValueError: for shapes that do not fit, or an unknown reduction or backend.
    """
    pair_check(rows, columns, scale, row_offset, column_mask, reduction)
    implementation: ModuleType = sigmoid_torch
    if resolve_backend(rows.device, backend) == "triton":
        from lcl_composer.kernels import sigmoid_triton

        implementation = sigmoid_triton
    dtype = matmul_dtype(rows, columns)
    with torch.autocast(rows.device.type, enabled=False):
        total: Tensor = _Sigmoid.apply(  # type: ignore[assignment]
            rows,
            columns,
            scale,
            bias,
            column_mask,
            row_offset,
            dtype,
            implementation,
            torch.is_grad_enabled(),
        )
        return total if reduction == "sum" else total / count_pairs(rows, row_offset, column_mask)


class _Sigmoid(torch.autograd.Function):
    """One sweep: a pair's gradient needs nothing but its own logit, so the forward computes it."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        bias: Tensor,
        mask: Tensor | None,
        row_offset: int,
        dtype: torch.dtype,
        implementation: ModuleType,
        grad_enabled: bool,
    ) -> Tensor:
        with_gradients = grad_enabled and any(ctx.needs_input_grad)
        loss, gradients = implementation.sweep(
            rows, columns, scale, bias, mask, dtype, row_offset, with_gradients
        )
        if gradients is not None:
            d_rows, d_columns, d_bias = gradients  # without the factor scale
            d_scale = (upcast(rows, dtype) * d_rows).sum()
            ctx.save_for_backward(d_rows.mul_(scale), d_columns.mul_(scale), d_scale, d_bias)
        ctx.dtypes = [tensor.dtype for tensor in (rows, columns, scale, bias)]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scaled = [(t * grad).to(dtype) for t, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return (*scaled, None, None, None, None, None)
