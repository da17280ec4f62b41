"""The temperature of L_con: learned, fixed, scheduled, or scheduled and then learned."""

from __future__ import annotations

import math
from typing import Literal

import torch
from composer.core import Event, State
from composer.loggers import Logger

from lcl_composer.algorithms.schedule import Schedule, Scheduled
from lcl_composer.methods.method import Method, contrast_of, method_of
from lcl_composer.models.sharding import local

Policy = Literal["learnable", "constant", "linear", "cosine", "warmup"]


class ContrastiveTemperature(Scheduled):
    """Who decides on the temperature, 1 / logit scale, that divides the cosines of L_con.

    ``learnable``: the gradient, as without this algorithm, from ``start`` and between ``floor`` and
    ``ceiling``. ``constant``: it stays at ``start``. ``linear``, ``cosine``: from ``start`` at ``begin`` to
    ``end`` at ``until``, then constant. ``warmup``: linear likewise, then learnable.

    Wherever the gradient does not decide, it is set to 0 before clipping sees it. The value lives in the
    model's ``logit_scale``, hence in the checkpoint, and is logged as ``loss/temperature``.

    Args:
        policy: See above.
        start: Temperature at the start; None takes ``1 / method.logit_scale_init``.
        end: Temperature at ``until``; only with ``linear``, ``cosine`` and ``warmup``.
        begin: When it starts to move.
        until: When it arrives.
        floor: Lowest temperature; None takes ``1 / method.logit_scale_max``.
        ceiling: Highest temperature; None for no limit.

    Raises:
        ValueError: If ``end`` is missing or useless, a temperature is not above 0, or ``start`` or ``end``
            lies outside of ``floor`` and ``ceiling``.
    """

    def __init__(
        self,
        policy: Policy,
        start: float | None = None,
        end: float | None = None,
        begin: str = "0ba",
        until: str = "1dur",
        floor: float | None = None,
        ceiling: float | None = None,
    ):
        moves = policy in ("linear", "cosine", "warmup")
        if moves != (end is not None):
            raise ValueError(f"policy {policy!r} {'needs' if moves else 'takes no'} end")
        given = [t for t in (start, end, floor, ceiling) if t is not None]
        if any(t <= 0 for t in given):
            raise ValueError("temperatures must be above 0")
        low, high = floor or 0.0, ceiling or math.inf
        if any(not low <= t <= high for t in (start, end, low) if t is not None):
            raise ValueError(
                f"start {start} and end {end} must lie between floor {floor} and ceiling {ceiling}"
            )
        shape = "cosine" if policy == "cosine" else "linear"
        super().__init__(Schedule(start or 0.0, end or 0.0, shape, begin, until), "loss/temperature")
        self.policy, self.start, self.floor, self.ceiling = policy, start, floor, ceiling
        self._learned = True  # whether the gradient decides in this batch

    def match(self, event: Event, state: State) -> bool:
        """Also after each backward and batch, where the gradient does not decide."""
        fixed = event in (Event.AFTER_BACKWARD, Event.BATCH_END) and not self._learned
        return fixed or super().match(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Set or leave the value; log it; drop its gradient."""
        model = method_of(state)
        _, contrast = contrast_of(model, "algorithms.contrastive_temperature")
        if event == Event.AFTER_BACKWARD:
            if contrast.logit_scale.grad is not None:
                contrast.logit_scale.grad.zero_()
            return
        if event == Event.BATCH_END:  # the last step of a warm-up must leave its end, also in a checkpoint
            self.set(model, self.schedule.value(state))
            return
        if event == Event.BATCH_START:
            self._learned = self.policy == "learnable" or (
                self.policy == "warmup" and self.schedule.over(state)
            )
            if self._learned:
                logger.log_metrics({self.metric: 1 / float(contrast.scale())})
                return
        super().apply(event, state, logger)

    def check(self, model: Method) -> None:
        """Raise ConfigError if the method contrasts nothing."""
        contrast_of(model, "algorithms.contrastive_temperature")

    def prepare(self, model: Method) -> None:
        """Set bounds and start."""
        _, contrast = contrast_of(model, "algorithms.contrastive_temperature")
        contrast.logit_scale_max = 1 / self.floor if self.floor else contrast.logit_scale_max
        contrast.logit_scale_min = 1 / self.ceiling if self.ceiling else contrast.logit_scale_min
        if self.start is None:
            self.schedule.start = 1 / float(local(contrast.logit_scale).exp())
        if self.policy == "constant":
            self.schedule.end = self.schedule.start
        self.set(model, self.schedule.start)

    def set(self, model: Method, value: float) -> float:
        """Write the temperature into the parameter; return it as clamped to its bounds."""
        _, contrast = contrast_of(model, "algorithms.contrastive_temperature")
        with torch.no_grad():
            local(contrast.logit_scale).fill_(-math.log(value))
        return 1 / float(contrast.scale())
