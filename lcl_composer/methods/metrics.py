"""Held-out losses as means over all targets or images of all ranks, not over batches."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class HeldOutLoss(Metric):
    """Mean of one loss over the whole held-out set.

    Args:
        loss_name: Key of the loss in the model's shares, ``contrastive`` or ``generation``.
    """

    full_state_update = False
    higher_is_better = False
    weighted_sum: Tensor
    count: Tensor

    def __init__(self, loss_name: str):
        super().__init__()
        self.loss_name = loss_name
        self.add_state("weighted_sum", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, share: Tensor, global_count: Tensor, local_count: Tensor) -> None:
        """Add a batch: this rank's share of its loss, its count over all ranks and on this rank."""
        self.weighted_sum += share.detach().double() * global_count
        self.count += local_count

    def compute(self) -> Tensor:
        """The mean; NaN if no target or image was seen."""
        return (self.weighted_sum / self.count).float()
