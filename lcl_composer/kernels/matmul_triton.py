"""Products of a gradient workspace: float32 sums over several calls, written once in their final dtype.

torch < 2.8 has no 16-bit product with a float32 result, and a sum of rounded chunks would lose what the
chunks' float32 accumulators hold.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Kernels are not Python: their calls, constants and tensors have no types that pyright knows.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lcl_composer.kernels.tiles import launch_options, tile_count, tiles_for
from lcl_composer.kernels.tiles_triton import visit


def matmul_into(
    out: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    add: bool = False,
    scale: Tensor | None = None,
) -> None:
    """``out = scale (a @ b)``, or ``out += a @ b``.

    Args:
        out: [M, N], contiguous, any float dtype; float32 to be added to.
        a: [M, K], a view (plain or transposed) of a workspace of whole tiles, read without masks: beyond K it
            holds zeros, beyond M it may hold anything.
        b: [K, N], contiguous, of the dtype of ``a``.
        add: whether to add to ``out``; takes no scale.
        scale: 0-dim float32 tensor, or None for 1.
    """
    (m, depth), n = a.shape, b.shape[1]
    tiles = tiles_for("adding" if add else "matmul", a)
    _matmul[(tile_count(m, tiles.m) * tile_count(n, tiles.n),)](
        a, b, out, out if scale is None else scale,
        m, n, depth, a.stride(0), a.stride(1),
        ADD=add, SCALE=scale is not None, MASK=n % tiles.n != 0,
        **launch_options(tiles, a),
    )  # fmt: skip


@triton.jit(do_not_specialize=["m", "depth"])
def _matmul(
    a_ptr, b_ptr, out_ptr, scale_ptr, m, n, depth, stride_am, stride_ak,
    ADD: tl.constexpr, SCALE: tl.constexpr, MASK: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    tile_m, tile_n = visit(tl.cdiv(m, BM), tl.cdiv(n, BN), GROUP)
    rows = tile_m * BM + tl.arange(0, BM)
    columns = tile_n * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    a = a_ptr + rows[:, None].to(tl.int64) * stride_am + k[None, :].to(tl.int64) * stride_ak
    b = b_ptr + k[:, None] * n + columns[None, :]
    first = (tile_m * BM).to(tl.int64) * n
    offsets = tl.arange(0, BM)[:, None] * n + columns[None, :]
    inside = (rows < m)[:, None]
    if MASK:
        inside = inside & (columns < n)[None, :]
    if ADD:  # before the loop: after it, the tile would be in registers twice
        tile = tl.load(out_ptr + first + offsets, mask=inside, other=0.0)
    else:
        tile = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, depth, BK):
        # Masks along a contiguous dimension cost vectorised loads unless n is known to be a multiple of 16.
        present = (k < depth - start)[:, None]
        if MASK:
            present = present & (columns < n)[None, :]
        a_tile = tl.load(a)
        b_tile = tl.load(b, mask=present, other=0.0)
        if UPCAST:
            a_tile = a_tile.to(tl.float32)
            b_tile = b_tile.to(tl.float32)
        tile = tl.dot(a_tile, b_tile, tile, input_precision=PRECISION)
        a += BK * stride_ak
        b += BK * n
    if SCALE:
        tile *= tl.load(scale_ptr)
    tl.store(out_ptr + first + offsets, tile.to(out_ptr.dtype.element_ty), mask=inside)
