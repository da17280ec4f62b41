"""Batch normalisation over the rows of all ranks."""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class GlobalBatchNorm(nn.Module):
    """Mean and deviation of each feature over the rows of a step on all ranks (Ioffe and Szegedy, 2015).

    With one rank it is ``torch.nn.BatchNorm1d``, with several ``torch.nn.SyncBatchNorm``, which asks for a
    GPU and for rows on every rank. In eval mode the running statistics are used. A step in microbatches
    has the statistics of each.

    Args:
        shape: Shape of a row's features.
        eps: Added to the variance.
        momentum: Weight of a step in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, *shape: int, eps: float = 1e-6, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_var", torch.ones(shape))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [N, *shape] of float32, normalised; N may be 0 on a rank."""
        if not self.training:
            return (rows - self.running_mean) * (self.running_var + self.eps).rsqrt()
        mean, variance, count = _moments(rows)
        with torch.no_grad():
            step = self.momentum * (count > 0)
            self.running_mean.lerp_(mean.detach(), step)
            self.running_var.lerp_(variance.detach() * count / (count - 1).clamp(min=1), step)
        return (rows - mean) * (variance + self.eps).rsqrt()


def _moments(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance over the rows of all ranks, and how many there are, 0-dim."""
    count = torch.full((), len(rows), dtype=rows.dtype, device=rows.device)
    if len(rows):
        variance, mean = torch.var_mean(rows, 0, correction=0)
    else:
        mean = variance = rows.sum(0)  # 0, and in the graph, so that all ranks' backwards meet
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return mean, variance, count
    # Each rank's moments merged (Chan, Golub and LeVeque, 1979): sums of squares would cancel.
    total = count.clone()
    dist.all_reduce(total)
    whole = _sum(mean * count) / total.clamp(min=1)
    squares = _sum((variance + (mean - whole).square()) * count)
    return whole, squares / total.clamp(min=1), total


def _sum(values: Tensor) -> Tensor:
    """The sum over ranks; each gets the sum of all ranks' gradients of it."""
    return cast(Tensor, all_reduce(values))
