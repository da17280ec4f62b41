"""Log-sum-exp over the tiles of a sweep: partials [tiles, N] to [N]."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Kernels are not Python: their calls, constants and tensors have no types that pyright knows.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lcl_composer.kernels.tiles_triton import MASKED


def log_sum_exp(partials: Tensor) -> Tensor:
    """Log-sum-exp over dimension 0 of [tiles, N], in the order of the tiles."""
    tiles, length = partials.shape
    result = torch.empty(length, device=partials.device, dtype=torch.float32)
    if length:
        _log_sum_exp[(triton.cdiv(length, 32),)](partials, result, tiles, length, BT=32, BN=32, num_warps=4)
    return result


@triton.jit(do_not_specialize=["tiles", "length"])
def _log_sum_exp(partials_ptr, result_ptr, tiles, length, BT: tl.constexpr, BN: tl.constexpr):
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    maximum = tl.full((BN,), MASKED, tl.float32)
    total = tl.zeros((BN,), tl.float32)
    for start in range(0, tiles, BT):
        row = start + tl.arange(0, BT)
        inside = (row[:, None] < tiles) & (columns[None, :] < length)
        offsets = row[:, None].to(tl.int64) * length + columns[None, :]
        block = tl.load(partials_ptr + offsets, mask=inside, other=MASKED)
        new = tl.maximum(maximum, tl.max(block, 0))
        total = total * tl.exp(maximum - new) + tl.sum(tl.exp(block - new[None, :]), 0)
        maximum = new
    tl.store(result_ptr + columns, maximum + tl.log(total), mask=columns < length)
