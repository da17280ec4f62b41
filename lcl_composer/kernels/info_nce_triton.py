"""InfoNCE for GPUs: one sweep over tiles for both statistics, column chunks of the gradient backward."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Kernels are not Python: their calls, constants and tensors have no types that pyright knows.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lcl_composer.kernels.log_sum_exp_triton import log_sum_exp
from lcl_composer.kernels.matmul_triton import matmul_into
from lcl_composer.kernels.tiles import (
    launch_options,
    tile_count,
    tiles_for,
    workspace,
    workspace_scale,
)
from lcl_composer.kernels.tiles_triton import MASKED, product_tile, store_tile, visit


def statistics(
    rows: Tensor, columns: Tensor, scale: Tensor, mask: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of rows [n] and columns [m] of ``scale rows columns^T``, as the twin's.

    Raises:
        ValueError: for float64, which tensor cores do not multiply.
    """
    rows, columns = operands(rows, columns, dtype)
    (n, dim), m = rows.shape, columns.shape[0]
    if n == 0:
        return rows.new_zeros(0, dtype=torch.float32), rows.new_full((m,), float("-inf"), dtype=torch.float32)
    tiles = tiles_for("pairs", rows)
    tiles_m, tiles_n = tile_count(n, tiles.m), tile_count(m, tiles.n)
    row_partials = rows.new_empty(tiles_n, n, dtype=torch.float32)
    column_partials = rows.new_empty(tiles_m, m, dtype=torch.float32)
    _statistics_tiles[(tiles_m * tiles_n,)](
        rows, columns, scale.float(), rows if mask is None else mask.to(torch.int8),
        row_partials, column_partials, n, m, dim,
        COLUMN_MASK=mask is not None, MASK=dim % tiles.k != 0, **launch_options(tiles, rows),
    )  # fmt: skip
    return log_sum_exp(row_partials), log_sum_exp(column_partials)


def gradients(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    dtype: torch.dtype,
    row_offset: int,
    row_lse: Tensor,
    column_lse: Tensor,
) -> tuple[Tensor, Tensor]:
    """``G columns`` [n, D] and ``G^T rows`` [m, D] in float32, less the factor scale / 2, as the twin's."""
    rows, columns = operands(rows, columns, dtype)
    (n, dim), m = rows.shape, columns.shape[0]
    d_rows = rows.new_empty(n, dim, dtype=torch.float32)
    d_columns = rows.new_zeros(m, dim, dtype=torch.float32)
    if n == 0:
        return d_rows, d_columns
    tiles, space = tiles_for("pairs", rows), workspace(rows, m)
    width = space.shape[1]
    for start in range(0, m, width):
        stop = min(start + width, m)
        _gradient_tiles[(tile_count(n, tiles.m) * tile_count(stop - start, tiles.n),)](
            rows, columns, scale.float(), rows if mask is None else mask.to(torch.int8),
            row_lse, column_lse, space, n, m, dim, start, stop, width, row_offset, workspace_scale(rows),
            COLUMN_MASK=mask is not None, MASK=dim % tiles.k != 0, **launch_options(tiles, rows),
        )  # fmt: skip
        multiply_chunk(space, rows, columns, start, stop, d_rows, d_columns)
    return unscale(d_rows, rows), unscale(d_columns, rows)


def operands(rows: Tensor, columns: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both in the dtype of the products, rows of D contiguous values.

    Raises:
        ValueError: for float64, which tensor cores do not multiply.
    """
    if dtype == torch.float64:
        raise ValueError("float64 runs on the loss backend 'torch' only")
    return rows.to(dtype).contiguous(), columns.to(dtype).contiguous()


def unscale(gradient: Tensor, operand: Tensor) -> Tensor:
    """Undo the workspace's scale in place."""
    scale = workspace_scale(operand)
    return gradient if scale == 1.0 else gradient.div_(scale)


def multiply_chunk(
    space: Tensor, rows: Tensor, columns: Tensor, start: int, stop: int, d_rows: Tensor, d_columns: Tensor
) -> None:
    """Add the chunk's ``G columns[start:stop]`` to ``d_rows``; write ``d_columns[start:stop] = G^T rows``.

    Both are as many times larger as the workspace.
    """
    chunk = space[: rows.shape[0], : stop - start]
    matmul_into(d_columns[start:stop], chunk.T, rows)
    matmul_into(d_rows, chunk, columns[start:stop], add=start > 0)


@triton.jit
def scaled_similarities(
    rows_ptr, columns_ptr, scale_ptr, rows, columns, n, m, dim,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    MASK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of ``scale rows columns^T`` [BM, BN]; beyond n and m it repeats the last row and column."""
    z = product_tile(
        rows_ptr, columns_ptr, tl.minimum(rows, n - 1), tl.minimum(columns, m - 1),
        dim, BM, BN, BK, MASK, PRECISION, UPCAST,
    )  # fmt: skip
    return z * tl.load(scale_ptr)


@triton.jit
def valid_columns(mask_ptr, columns, m, COLUMN_MASK: tl.constexpr):
    """Which columns [BN] exist and are not masked."""
    valid = columns < m
    if COLUMN_MASK:
        valid = valid & (tl.load(mask_ptr + tl.minimum(columns, m - 1)) != 0)
    return valid


@triton.jit
def axis_log_sum_exp(z, AXIS: tl.constexpr):
    """Log-sum-exp of a tile over one axis, with that axis' own maximum."""
    maximum = tl.max(z, AXIS)
    return maximum + tl.log(tl.sum(tl.exp(z - tl.expand_dims(maximum, AXIS)), AXIS))


@triton.jit(do_not_specialize=["n", "m"])
def _statistics_tiles(
    rows_ptr, columns_ptr, scale_ptr, mask_ptr, row_partials_ptr, column_partials_ptr, n, m, dim,
    COLUMN_MASK: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    MASK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of similarities: the log-sum-exp of its rows and of its columns."""
    tile_m, tile_n = visit(tl.cdiv(n, BM), tl.cdiv(m, BN), GROUP)
    rows = tile_m * BM + tl.arange(0, BM)
    columns = tile_n * BN + tl.arange(0, BN)
    z = scaled_similarities(
        rows_ptr, columns_ptr, scale_ptr, rows, columns, n, m, dim, BM, BN, BK, MASK, PRECISION, UPCAST
    )
    valid = valid_columns(mask_ptr, columns, m, COLUMN_MASK)
    z = tl.where((rows < n)[:, None] & valid[None, :], z, MASKED)
    row_partials = row_partials_ptr + tile_n.to(tl.int64) * n
    tl.store(row_partials + rows, axis_log_sum_exp(z, 1), mask=rows < n)
    column_partials = column_partials_ptr + tile_m.to(tl.int64) * m
    tl.store(column_partials + columns, axis_log_sum_exp(z, 0), mask=columns < m)


@triton.jit(do_not_specialize=["n", "m", "start", "stop", "row_offset"])
def _gradient_tiles(
    rows_ptr, columns_ptr, scale_ptr, mask_ptr,
    row_lse_ptr, column_lse_ptr, workspace_ptr,
    n, m, dim, start, stop, width, row_offset, workspace_scale,
    COLUMN_MASK: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    MASK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of d loss / d similarities of the columns from start to stop, into the workspace."""
    tile_m, tile_n = visit(tl.cdiv(n, BM), tl.cdiv(stop - start, BN), GROUP)
    rows = tile_m * BM + tl.arange(0, BM)
    local = tile_n * BN + tl.arange(0, BN)
    columns = start + local
    z = scaled_similarities(
        rows_ptr, columns_ptr, scale_ptr, rows, columns, n, m, dim, BM, BN, BK, MASK, PRECISION, UPCAST
    )
    valid = valid_columns(mask_ptr, columns, m, COLUMN_MASK) & (local < stop - start)
    row_lse = tl.load(row_lse_ptr + rows, mask=rows < n, other=float("inf"))
    column_lse = tl.load(column_lse_ptr + columns, mask=valid, other=float("inf"))
    partner = tl.where(row_lse < float("inf"), rows + row_offset, -1)
    gradient = tl.exp(z - row_lse[:, None]) + tl.exp(z - column_lse[None, :])
    gradient = tl.where(columns[None, :] == partner[:, None], gradient - 2.0, gradient)
    gradient = tl.where((rows < n)[:, None] & valid[None, :], gradient * workspace_scale, 0.0)
    store_tile(workspace_ptr, gradient, tile_m, local, width, BM)
