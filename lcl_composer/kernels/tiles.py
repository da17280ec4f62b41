"""How the Triton kernels cut their work: tiles by kernel, dtype and GPU, and the workspaces they fill."""

from __future__ import annotations

import functools
import os
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

#: Tile rows that are visited together, so that the columns they share stay in L2.
GROUP = 16


class Tiles(NamedTuple):
    """A tile of m x n outputs, filled k deep at a time."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


class GPU(NamedTuple):
    """What sizes the work."""

    major: int  # of the compute capability
    processors: int


Kernel = Literal["logits", "pairs", "sigmoid", "matmul", "adding"]

# Fixed, not tuned at run time: another tile is another order of summation, and two runs must agree bitwise.
# docs/kernel_sizes.md lists what each takes. A tile of 256 x 128 reads a quarter less from L2 for a product
# than one of 128 x 128, and that traffic is the limit on Hopper; the epilogues of "pairs" and "sigmoid" leave
# no registers for it, and before Hopper the operands' fragments take registers too.
_NARROW = Tiles(128, 128, 64, 8, 3)
_HALF: dict[Kernel, Tiles] = {
    "logits": _NARROW,
    "pairs": _NARROW,
    "sigmoid": Tiles(128, 64, 64, 8, 3),
    "matmul": _NARROW,
    "adding": _NARROW,
}
_WIDE = Tiles(256, 128, 64, 16, 3)
_HALF_BY_MAJOR: dict[int, dict[Kernel, Tiles]] = {
    9: {**_HALF, "logits": _WIDE, "matmul": _WIDE, "adding": Tiles(256, 128, 32, 8, 6)},
    10: {**_HALF, "matmul": Tiles(128, 256, 64, 8, 3)},  # 16 warps would get the old mma.sync
}
_SINGLE = Tiles(128, 64, 32, 8, 3)
#: For the interpreter, so that small tests have many tiles, with ragged edges.
_INTERPRETED = Tiles(32, 32, 16, 4, 1)


@functools.cache
def gpu(device: torch.device) -> GPU:
    """Read the limits off a CUDA device."""
    properties = torch.cuda.get_device_properties(device)
    return GPU(properties.major, properties.multi_processor_count)


def interpreting() -> bool:
    """Whether Triton interprets on the CPU; it reads TRITON_INTERPRET when a kernel is defined."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def tiles_for(kernel: Kernel, operand: Tensor) -> Tiles:
    """The tile of a kernel for operands like ``operand``."""
    if interpreting():
        return _INTERPRETED
    if operand.element_size() == 4:
        return _SINGLE
    return _HALF_BY_MAJOR.get(gpu(operand.device).major, _HALF)[kernel]


def tile_count(size: int, tile: int) -> int:
    """Tiles that cover ``size``."""
    return -(-size // tile)


def workspace(operand: Tensor, columns: int) -> Tensor:
    """Uninitialised [height, width] for the gradient of N x (at most width) logits, N rows of ``operand``.

    The width lets the transposed product with ``operand`` [N, D] fill the GPU once: 8448 / 5632 / 4096 at
    D = 512 / 768 / 1024 on 132 processors, and no more than ``columns`` need. Both are whole tiles of every
    kernel.
    """
    tiles = tiles_for("matmul", operand)
    processors = 4 if interpreting() else gpu(operand.device).processors
    wave = processors // tile_count(operand.shape[1], tiles.n) * tiles.m
    width = max(tiles.m, min(wave, tile_count(columns, tiles.m) * tiles.m))
    return operand.new_empty(tile_count(operand.shape[0], tiles.m) * tiles.m, width)


def workspace_scale(operand: Tensor) -> float:
    """The power of two by which a workspace's gradients are held larger.

    A probability of 1 / 49,411 is subnormal in float16; other dtypes reach far enough.
    """
    return 256.0 if operand.dtype == torch.float16 else 1.0


def launch_options(tiles: Tiles, operand: Tensor) -> dict[str, Any]:
    """The constexprs and options that every kernel with a matrix product takes.

    float32 operands are split into three TF32 products (as exact as float32), or enter one where the user
    allows TF32. The interpreter multiplies the bit patterns of bfloat16, hence UPCAST.
    """
    fast = operand.dtype != torch.float32 or torch.backends.cuda.matmul.allow_tf32
    return {
        "GROUP": GROUP, "BM": tiles.m, "BN": tiles.n, "BK": tiles.k,
        "PRECISION": "tf32" if fast else "tf32x3",
        "UPCAST": interpreting() and operand.dtype == torch.bfloat16,
        "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip
