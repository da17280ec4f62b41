"""Evaluate in the middle of training without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the body in eval mode without gradients; put modes and random states back afterwards.

    The mode is kept a module: a frozen part that was in eval mode stays so. Random states of ``random``,
    numpy, torch and this process's CUDA device are restored, also when the body raises, so that a run with
    evaluations is bitwise the run without them. Iterating a DataLoader draws from torch's generator: do it
    inside.

    Args:
        model: The module whose mode is changed.
    """
    modes = [(module, module.training) for module in model.modules()]
    cuda = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's first parameter."""
    return next(model.parameters()).device
