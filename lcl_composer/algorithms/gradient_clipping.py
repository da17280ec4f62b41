"""Gradient clipping: by the global norm, by value, or by unit relative to the weights."""

from __future__ import annotations

from typing import Literal

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import Tensor, nn

from lcl_composer.models.sharding import clip_norm, is_sharded, local

_SMALLEST_NORM = 1e-3


class GradientClipping(Algorithm):
    """Clips gradients after the backward of the whole batch, before the optimizer's step.

    Composer's own accepts any ``clipping_type`` until the first batch has been trained, and its ``adaptive``
    multiplies the gradient of every weight that is 0, such as a fresh bias, by 0: such a weight never moves.

    AFTER_TRAIN_BATCH runs algorithms in reverse order: one that must see clipped gradients stands before this
    one in the YAML, one that must see them unclipped behind it.

    Args:
        clipping_type: ``norm``: the norm of all gradients together is at most the threshold. ``value``: each
            element is. ``adaptive``: the norm of each output unit's gradient is at most the threshold times
            that of its weights (AGC, arXiv 2102.06171), taken as at least 1e-3.
        clipping_threshold: Above 0.

    Raises:
        ValueError: If the threshold is not above 0.
    """

    def __init__(self, clipping_type: Literal["norm", "value", "adaptive"], clipping_threshold: float):
        if clipping_threshold <= 0:
            raise ValueError(f"clipping_threshold {clipping_threshold} must be above 0")
        self.clipping_type, self.clipping_threshold = clipping_type, clipping_threshold

    def match(self, event: Event, state: State) -> bool:
        """After the batch's last backward; gradients are unscaled and summed over ranks."""
        return event == Event.AFTER_TRAIN_BATCH

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Clip in place."""
        parameters = [p for p in state.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.clipping_type == "norm" and any(map(is_sharded, gradients)):
            clip_norm(gradients, self.clipping_threshold)
        elif self.clipping_type == "norm":
            nn.utils.clip_grad_norm_(parameters, self.clipping_threshold)
        elif self.clipping_type == "value":
            for gradient in gradients:
                local(gradient).clamp_(-self.clipping_threshold, self.clipping_threshold)
        else:
            clip_adaptively(parameters, self.clipping_threshold)


@torch.no_grad()
def clip_adaptively(parameters: list[nn.Parameter], threshold: float) -> None:
    """Scale each output unit's gradient to at most ``threshold`` times the norm of its weights, in place.

    Args:
        parameters: With gradients; a unit is a row of a matrix, a filter, or a whole vector or scalar.
        threshold: Largest ratio of the norms.
    """
    for parameter in parameters:
        assert parameter.grad is not None
        limit = threshold * _unit_norm(parameter).clamp(min=_SMALLEST_NORM)
        parameter.grad.mul_((limit / _unit_norm(parameter.grad).clamp(min=1e-12)).clamp(max=1))


def _unit_norm(tensor: Tensor) -> Tensor:
    """Norm of each output unit, shaped to broadcast over the tensor."""
    if tensor.dim() <= 1:
        return torch.linalg.vector_norm(tensor)
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim())), keepdim=True)
