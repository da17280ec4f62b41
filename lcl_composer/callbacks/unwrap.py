"""Reach the model behind Composer's state."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from composer.core import State
from torch import nn

if TYPE_CHECKING:
    from lcl_composer.models.lcl import LCLModel


def lcl_model(state: State) -> LCLModel:
    """The LCLModel that is being trained, without DistributedDataParallel around it."""
    model = state.model
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return cast("LCLModel", model)
