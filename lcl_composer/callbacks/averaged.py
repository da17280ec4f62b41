"""Measure and export the average of the weights where the run keeps one and asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from composer.core import State

from lcl_composer.algorithms.ema import EMA
from lcl_composer.methods.method import method_of


@contextmanager
def averaged(state: State, purpose: Literal["evaluate", "export"]) -> Iterator[None]:
    """Give the model the weights of ``algorithms.ema`` inside the body, if that is set for ``purpose``.

    Without EMA, or where the model holds the average already, nothing changes.
    """
    found = [a for a in state.algorithms if isinstance(a, EMA) and getattr(a, purpose) and not a.in_model]
    for ema in found:
        ema.swap(method_of(state))
    try:
        yield
    finally:
        for ema in found:
            ema.swap(method_of(state))
