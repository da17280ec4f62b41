"""Symmetric InfoNCE of a block of rows against all columns, without the similarity matrix in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lcl_composer.kernels import info_nce_torch
from lcl_composer.kernels.backend import matmul_dtype, resolve_backend, upcast
from lcl_composer.kernels.pairs import count_pairs, pair_check, pair_mask

#: From the log-sum-exp [m] of the columns over one block of rows to that over the rows of all ranks.
MergeColumns = Callable[[Tensor], Tensor]


@torch.compiler.disable
def info_nce(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    *,
    row_offset: int = 0,
    column_mask: Tensor | None = None,
    reduction: str = "mean",
    merge_columns: MergeColumns | None = None,
    backend: str | None = None,
) -> Tensor:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020): half row-wise, half column-wise cross-entropy.

    With ``z_ij = scale <rows_i, columns_j>`` and p(i) = row_offset + i, the sum over rows of
    ``(LSE_j z_ij + LSE_i z_ip(i)) / 2 - z_ip(i)``.

    Args:
        rows: [n, D], normalised by the caller; n may be 0.
        columns: [m, D], ``m >= row_offset + n``.
        scale: 0-dim tensor, positive; gradient flows to it.
        row_offset: the column that row 0 belongs to.
        column_mask: [m] bool; False: the column is no negative, and neither it nor its row has a loss.
        reduction: ``"mean"`` over the pairs (0 when there is none) or ``"sum"``.
        merge_columns: given where ``rows`` are one rank's block of a larger set that covers every column.
            Called once, in the forward, with the columns' log-sum-exp [m] over this block (-inf without
            rows); returns the log-sum-exp [m] over the rows of all ranks. The gradient of ``columns`` is
            then this block's share, for the same upstream gradient on every rank.
        backend: ``"torch"``, ``"triton"`` or None (by device).

    Returns:
        A scalar in float32 (float64 for float64 inputs). It has first derivatives only.

    Raises:
        ValueError: for shapes that do not fit, or an unknown reduction or backend.
    """
    pair_check(rows, columns, scale, row_offset, column_mask, reduction)
    implementation: ModuleType = info_nce_torch
    if resolve_backend(rows.device, backend) == "triton":
        from lcl_composer.kernels import info_nce_triton

        implementation = info_nce_triton
    block = Block(row_offset, matmul_dtype(rows, columns), implementation, merge_columns)
    with torch.autocast(rows.device.type, enabled=False):
        total: Tensor = _InfoNCE.apply(rows, columns, scale, column_mask, block)  # type: ignore[assignment]
        return total if reduction == "sum" else total / count_pairs(rows, row_offset, column_mask)


@dataclass(frozen=True)
class Block:
    """Where the rows stand among the columns, and what computes."""

    row_offset: int
    dtype: torch.dtype  # of the values that enter the matrix products
    implementation: ModuleType  # info_nce_torch or info_nce_triton
    merge_columns: MergeColumns | None


class _InfoNCE(torch.autograd.Function):
    """One sweep for the statistics in the forward, one for the gradients in the backward."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, mask: Tensor | None, block: Block
    ) -> Tensor:
        row_lse, column_lse = block.implementation.statistics(rows, columns, scale, mask, block.dtype)
        if block.merge_columns is not None:
            column_lse = block.merge_columns(column_lse)
        ctx.save_for_backward(rows, columns, scale, mask, row_lse, column_lse)
        ctx.block = block
        own = slice(block.row_offset, block.row_offset + rows.shape[0])
        products = upcast(rows, block.dtype) * upcast(columns[own], block.dtype)
        positives = products.sum(1) * scale.to(row_lse.dtype)
        losses = 0.5 * (row_lse + column_lse[own]) - positives
        return (losses if mask is None else losses.masked_fill(~mask[own], 0.0)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, columns, scale, mask, row_lse, column_lse = ctx.saved_tensors
        block: Block = ctx.block
        has_loss = pair_mask(rows.shape[0], columns, block.row_offset, mask)  # [m]: this block's columns
        own = slice(block.row_offset, block.row_offset + rows.shape[0])
        row_lse = row_lse.masked_fill(~has_loss[own], float("inf"))
        if block.merge_columns is not None:  # every column has its pair on some rank
            has_loss = torch.ones_like(has_loss) if mask is None else mask
        d_rows, d_columns = block.implementation.gradients(
            rows, columns, scale, mask, block.dtype, block.row_offset,
            row_lse, column_lse.masked_fill(~has_loss, float("inf")),
        )  # fmt: skip
        # d_rows lacks the factor scale / 2, so its product with the rows is the scale's gradient.
        d_scale = 0.5 * grad * (upcast(rows, block.dtype) * d_rows).sum()
        factor = 0.5 * grad * scale.to(grad.dtype)
        return (
            (d_rows * factor).to(rows.dtype), (d_columns * factor).to(columns.dtype), d_scale.to(scale.dtype),
            None, None,
        )  # fmt: skip
