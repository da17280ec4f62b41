"""The pairwise sigmoid loss for GPUs: one sweep in column chunks gives the loss and all gradients."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Kernels are not Python: their calls, constants and tensors have no types that pyright knows.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lcl_composer.kernels.info_nce_triton import (
    multiply_chunk,
    operands,
    scaled_similarities,
    unscale,
    valid_columns,
)
from lcl_composer.kernels.tiles import (
    launch_options,
    tile_count,
    tiles_for,
    workspace,
    workspace_scale,
)
from lcl_composer.kernels.tiles_triton import store_tile, visit


def sweep(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    dtype: torch.dtype,
    row_offset: int,
    with_gradients: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Return the summed loss and, if asked, ``G columns``, ``G^T rows`` and ``sum G``, as the twin.

    Raises:
        ValueError: for float64, which tensor cores do not multiply.
    """
    rows, columns = operands(rows, columns, dtype)
    (n, dim), m = rows.shape, columns.shape[0]
    d_rows = rows.new_zeros(n, dim, dtype=torch.float32)
    d_columns = rows.new_zeros(m, dim, dtype=torch.float32)
    zero = d_rows.new_zeros(())
    if n == 0 or m == 0:
        return zero, (d_rows, d_columns, zero.clone()) if with_gradients else None
    tiles = tiles_for("sigmoid", rows)
    tiles_m, tiles_n = tile_count(n, tiles.m), tile_count(m, tiles.n)
    space = workspace(rows, m) if with_gradients else rows
    width = space.shape[1] if with_gradients else m
    losses = rows.new_zeros(tiles_n, tiles_m, dtype=torch.float32)
    biases = torch.zeros_like(losses)
    for start in range(0, m, width):
        stop = min(start + width, m)
        _sigmoid_tiles[(tiles_m * tile_count(stop - start, tiles.n),)](
            rows, columns, scale.float(), bias.float(), rows if mask is None else mask.to(torch.int8),
            losses[start // tiles.n :], biases[start // tiles.n :], space,
            n, m, dim, start, stop, width, row_offset, workspace_scale(rows),
            COLUMN_MASK=mask is not None, GRADIENT=with_gradients, MASK=dim % tiles.k != 0,
            **launch_options(tiles, rows),
        )  # fmt: skip
        if with_gradients:
            multiply_chunk(space, rows, columns, start, stop, d_rows, d_columns)
    if not with_gradients:
        return losses.sum(), None
    return losses.sum(), (unscale(d_rows, rows), unscale(d_columns, rows), biases.sum())


@triton.jit(do_not_specialize=["n", "m", "start", "stop", "row_offset"])
def _sigmoid_tiles(
    rows_ptr, columns_ptr, scale_ptr, bias_ptr, mask_ptr, losses_ptr, biases_ptr, workspace_ptr,
    n, m, dim, start, stop, width, row_offset, workspace_scale,
    COLUMN_MASK: tl.constexpr, GRADIENT: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    MASK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of logits: the sum of its losses and of its gradients, and the gradients themselves."""
    tiles_m = tl.cdiv(n, BM)
    tile_m, tile_n = visit(tiles_m, tl.cdiv(stop - start, BN), GROUP)
    rows = tile_m * BM + tl.arange(0, BM)
    local = tile_n * BN + tl.arange(0, BN)
    columns = start + local
    z = tl.load(bias_ptr) + scaled_similarities(
        rows_ptr, columns_ptr, scale_ptr, rows, columns, n, m, dim, BM, BN, BK, MASK, PRECISION, UPCAST
    )
    sign = tl.where((columns - row_offset)[None, :] == rows[:, None], -1.0, 1.0)
    valid = valid_columns(mask_ptr, columns, m, COLUMN_MASK) & (local < stop - start)
    counted = (rows < n)[:, None] & valid[None, :]
    # softplus(y) = max(y, 0) + log(1 + e^-|y|). The series: 1 + e^-10 has but 10 bits of e^-10 left.
    y = sign * z
    decay = tl.exp(-tl.abs(y))
    series = decay * (1.0 - decay * (0.5 - decay * 0.33333333))
    loss = tl.maximum(y, 0.0) + tl.where(decay < 0.01, series, tl.log(1.0 + decay))
    tl.store(losses_ptr + tile_n * tiles_m + tile_m, tl.sum(tl.where(counted, loss, 0.0)))
    if GRADIENT:
        gradient = tl.where(counted, sign / (1.0 + tl.exp(-y)), 0.0)
        tl.store(biases_ptr + tile_n * tiles_m + tile_m, tl.sum(gradient))
        store_tile(workspace_ptr, gradient * workspace_scale, tile_m, local, width, BM)
