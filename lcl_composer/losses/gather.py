"""Collectives of the contrastive losses. Every rank of the group must make each call; none may skip it.

Without a process group, or in a group of one, nothing is sent.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Ranks in ``group`` (None: the default group), 1 where torch.distributed is not in use."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


@cache
def host_group(group: dist.ProcessGroup | None = None) -> dist.ProcessGroup | None:
    """The ranks of a group with a backend that sends what lies in the host's memory: no device is waited for.

    All ranks must ask for it the first time.
    """
    if dist.get_backend(group) == "gloo":
        return group
    if group is None:
        return dist.new_group(backend="gloo")
    return dist.new_group(dist.get_process_group_ranks(group), backend="gloo", use_local_synchronization=True)


def gather_counts(count: int, group: dist.ProcessGroup | None = None) -> list[int]:
    """How many rows each rank of the group holds, in rank order."""
    mine = torch.tensor([count])
    counts = mine.new_empty(world_size(group))
    dist.all_gather_into_tensor(counts, mine, group=host_group(group))
    return counts.tolist()


def gather_rows(rows: Tensor, counts: list[int], group: dist.ProcessGroup | None = None) -> Tensor:
    """All ranks' rows in rank order, [sum(counts), D]; the gradient goes back to the rank that owns a row.

    Args:
        rows: [counts[rank], D]. Ranks may hold different numbers of rows, 0 included.
        counts: rows of each rank, from :func:`gather_counts`.
        group: process group, None for the default one.

    Returns:
        The rows of all ranks. In the backward each rank gives its share of the gradient of all rows, and
        gets the sum over ranks of the gradient of its own rows.
    """
    return _GatherRows.apply(rows, counts, group)  # type: ignore[return-value]


class _GatherRows(torch.autograd.Function):
    """All-gather, padded to the largest count and compacted; its transpose is a reduce-scatter."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, rows: Tensor, counts: list[int], group: dist.ProcessGroup | None
    ) -> Tensor:
        ctx.counts, ctx.group, ctx.rank, ctx.dtype = counts, group, dist.get_rank(group), rows.dtype
        longest = max(counts)
        if longest == 0:
            return rows.new_empty(0, rows.shape[1])
        padded = rows.new_zeros(longest, rows.shape[1])
        padded[: rows.shape[0]] = rows
        gathered = rows.new_empty(len(counts) * longest, rows.shape[1])
        dist.all_gather_into_tensor(gathered, padded, group=group)
        if min(counts) == longest:
            return gathered
        blocks = gathered.view(len(counts), longest, -1)
        return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        longest = max(ctx.counts)
        own = grad.new_empty(longest, grad.shape[1], dtype=torch.promote_types(grad.dtype, torch.float32))
        if longest > 0:
            # Summed in float32: over many ranks a sum of bf16 shares would lose the small ones.
            padded = own.new_zeros(len(ctx.counts), longest, grad.shape[1])
            for block, part in zip(padded, grad.split(ctx.counts), strict=True):
                block[: part.shape[0]] = part
            dist.reduce_scatter_tensor(own, padded.flatten(0, 1), op=dist.ReduceOp.SUM, group=ctx.group)
        return own[: ctx.counts[ctx.rank]].to(ctx.dtype), None, None


def merge_log_sum_exp(lse: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Log-sum-exp [m] over all ranks from that of each rank [m]; a rank without rows brings -inf."""
    maximum = lse.clone()
    dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=group)
    sum_exp = torch.exp(lse - maximum)
    dist.all_reduce(sum_exp, op=dist.ReduceOp.SUM, group=group)
    return maximum + sum_exp.log()
