"""Device functions on tiles: the order of visits, the product that fills one, the store of one."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Kernels are not Python: their calls, constants and tensors have no types that pyright knows.

from __future__ import annotations

import triton
import triton.language as tl

#: A logit that counts for nothing. Finite: the log-sum-exp of a wholly masked row must not be NaN.
MASKED = tl.constexpr(-1e30)


@triton.jit
def visit(tiles_m, tiles_n, GROUP: tl.constexpr):
    """Tile (m, n) of this program: down GROUP tiles, then one to the right, so that operands meet in L2."""
    program = tl.program_id(0)
    per_group = GROUP * tiles_n
    first = program // per_group * GROUP
    height = min(tiles_m - first, GROUP)
    return first + program % per_group % height, program % per_group // height


@triton.jit
def store_tile(ptr, tile, tile_m, columns, width, BM: tl.constexpr):
    """Store a whole tile to rows of ``width`` values; only its first row's offset may need 64 bits."""
    offsets = tl.arange(0, BM)[:, None] * width + columns[None, :]
    tl.store(ptr + (tile_m * BM).to(tl.int64) * width + offsets, tile.to(ptr.dtype.element_ty))


@triton.jit
def product_tile(
    a_ptr, b_ptr, rows, columns, dim,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    MASK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``A[rows] @ B[columns]^T`` [BM, BN] in float32, A and B of ``dim`` contiguous values a row.

    MASK where dim is no multiple of BK.
    """
    k = tl.arange(0, BK)
    a = a_ptr + rows[:, None].to(tl.int64) * dim + k[None, :]
    b = b_ptr + columns[None, :].to(tl.int64) * dim + k[:, None]
    accumulator = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, dim, BK):
        if MASK:
            a_tile = tl.load(a, mask=k[None, :] < dim - start, other=0.0)
            b_tile = tl.load(b, mask=k[:, None] < dim - start, other=0.0)
        else:
            a_tile = tl.load(a)
            b_tile = tl.load(b)
        if UPCAST:
            a_tile = a_tile.to(tl.float32)
            b_tile = b_tile.to(tl.float32)
        accumulator = tl.dot(a_tile, b_tile, accumulator, input_precision=PRECISION)
        a += BK
        b += BK
    return accumulator
