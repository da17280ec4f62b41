"""A number that moves over training, and the algorithms that set something to it before each batch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

from composer.core import Algorithm, Event, State, Time, TimeUnit
from composer.loggers import Logger

from lcl_composer.methods.method import Method, method_of

Shape = Literal["linear", "cosine"]


class Schedule:
    """From ``start`` to ``end`` between two points in time; constant before and after.

    It is a function of the timestamp alone, so that a resumed run follows it without any state. In epochs,
    and in shares of a training of epochs, it moves with every batch.

    Args:
        start: Value up to ``begin``.
        end: Value from ``until`` on.
        shape: The way between: ``linear``, or half a ``cosine`` (flat at both ends).
        begin: Composer time string (``ep``, ``ba``, ``sp``, ``tok`` or ``dur``).
        until: Composer time string in the same unit; equal to ``begin`` for a step.

    Raises:
        ValueError: If the two times have different units and ``begin`` is not 0, are out of order, below 0,
            or in a unit that a schedule cannot follow.
    """

    def __init__(self, start: float, end: float, shape: Shape, begin: str, until: str):
        self.start, self.end, self.shape = start, end, shape
        self._begin, self._until = Time.from_timestring(begin), Time.from_timestring(until)
        if self._until.unit in (TimeUnit.SECOND, TimeUnit.ITERATION):
            raise ValueError(f"until {until!r} must be in ep, ba, sp, tok or dur")
        if min(self._begin.value, self._until.value) < 0:
            raise ValueError(f"begin {begin!r} and until {until!r} must not be negative")
        if self._begin.value == 0:
            self._begin = Time(0, self._until.unit)
        if self._begin.unit != self._until.unit:
            raise ValueError(f"begin {begin!r} and until {until!r} must have one unit")
        if self._begin.value > self._until.value:
            raise ValueError(f"begin {begin!r} is after until {until!r}")

    def value(self, state: State) -> float:
        """The value for the batch that is about to be trained.

        Raises:
            ValueError: If the times are shares of the training (``dur``) whose length is not known, or epochs
                whose number of batches is not known.
        """
        now, begin, until = self._now(state), self._begin.value, self._until.value
        if now >= until:
            return self.end
        if now <= begin:
            return self.start
        progress = (now - begin) / (until - begin)
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress

    def over(self, state: State) -> bool:
        """Whether ``until`` has passed."""
        return self._now(state) >= self._until.value

    def _now(self, state: State) -> float:
        """The time in the unit of the schedule; epochs count by their batches, not only when they end."""
        unit = self._until.unit
        if unit == TimeUnit.EPOCH:
            return _epochs(state)
        if unit != TimeUnit.DURATION:
            return float(state.timestamp.get(unit).value)
        return share_done(state)


def share_done(state: State) -> float:
    """The share of the training that is done; of one in epochs by its batches, where Composer's stands still.

    Raises:
        ValueError: If the length of the training is not known.
    """
    if state.max_duration is None:
        raise ValueError("a share of the training ('dur') needs max_duration")
    if state.max_duration.unit == TimeUnit.EPOCH:
        return _epochs(state) / state.max_duration.value
    elapsed = state.get_elapsed_duration()
    assert elapsed is not None, "max_duration is known"
    return float(elapsed.value)


def in_batches(key: str, time: str, least: int = 1) -> int:
    """The number in a time string in ``ba``; ``key`` names the setting in the message.

    Raises:
        ValueError: If it is in another unit, or less than ``least``.
    """
    parsed = Time.from_timestring(time)
    if parsed.unit != TimeUnit.BATCH or parsed.value < least:
        raise ValueError(f"{key} {time!r} must be in batches, at least {least}ba")
    return int(parsed.value)


def _epochs(state: State) -> float:
    """Epochs trained, with the share of the running one."""
    if state.dataloader_len is None:
        raise ValueError("a schedule in epochs needs a data loader of known length; give its times in 'ba'")
    done = int(state.timestamp.batch_in_epoch) / int(state.dataloader_len)
    return int(state.timestamp.epoch) + done


class Scheduled(Algorithm, ABC):
    """Sets one thing of the model to the value of a schedule before each batch, and logs it.

    Args:
        schedule: The value over time.
        metric: Name to log the value under.
    """

    def __init__(self, schedule: Schedule, metric: str):
        self.schedule, self.metric = schedule, metric

    def match(self, event: Event, state: State) -> bool:
        """At construction and before each batch."""
        return event in (Event.INIT, Event.BATCH_START)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Check and prepare the model once; then set and log the value."""
        model = method_of(state)
        if event == Event.INIT:
            self.check(model)
            self.prepare(model)
            return
        value = self.schedule.value(state)
        logger.log_metrics({self.metric: self.set(model, value)})

    def check(self, model: Method) -> None:
        """Refuse a model that it cannot work on, by a ConfigError; ``lcl check`` asks too."""

    def prepare(self, model: Method) -> None:
        """Change the model, once checked, before a checkpoint is loaded and DDP goes around it."""

    @abstractmethod
    def set(self, model: Method, value: float) -> float:
        """Set the value for the coming batch; return what is to be logged, the value actually used."""
