"""What drop-ins build on: act every so often, on held-out documents, without disturbing training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from composer.core import Callback, Evaluator, Event, State, Time, TimeUnit
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from composer.utils import create_interval_scheduler

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import num_samples, split_batch
from lcl_composer.evaluation.quiet import undisturbed
from lcl_composer.methods.method import method_of
from lcl_composer.methods.whole import whole


class Periodic(Callback, ABC):
    """A callback that acts every ``every`` and once more when training ends.

    Args:
        every: Composer time string such as ``500ba`` or ``1ep``.

    Raises:
        ValueError: If it is not above 0, or in iterations, which no training here has.
    """

    def __init__(self, every: str):
        time = Time.from_timestring(every)
        if not time.value > 0 or time.unit == TimeUnit.ITERATION:
            raise ValueError(f"every {every!r} must be above 0, in ep, ba, sp, tok, sec or dur")
        self._due = create_interval_scheduler(
            every, checkpoint_events=False, final_events={Event.BATCH_END, Event.EPOCH_END}
        )
        self._acted_at = -1

    @abstractmethod
    def act(self, state: State, logger: Logger) -> None:
        """Do the work. All ranks call it together; loggers and files are for rank 0."""

    def batch_end(self, state: State, logger: Logger) -> None:
        """Act if a batch interval has passed."""
        self._act_if_due(Event.BATCH_END, state, logger)

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Act if an epoch interval has passed."""
        self._act_if_due(Event.EPOCH_END, state, logger)

    def _act_if_due(self, event: Event, state: State, logger: Logger) -> None:
        batch = int(state.timestamp.batch)
        if batch != self._acted_at and self._due(state, event):
            self._acted_at = batch
            self.act(state, logger)


class HeldOut:
    """Held-out batches for a drop-in: the same documents each time, on the CPU.

    They come from the first evaluator's loader (``data.eval``), read once and kept. A run without
    held-out data gets the current training batch instead, another one each time. On several ranks each has
    its own share, and all must ask together, as iterating a streaming loader waits for the others.

    Args:
        images: Stop once the batches hold this many images.

    Raises:
        ValueError: If that is below 1.
    """

    def __init__(self, images: int):
        if images < 1:
            raise ValueError(f"images {images} must be at least 1")
        self.images = images
        self._kept: list[PackedBatch] | None = None

    def batches(self, state: State) -> list[PackedBatch]:
        """Batches with at least ``images`` images together, fewer if there are no more."""
        if not state.evaluators:
            size = int(state.device_train_microbatch_size or num_samples(state.batch))
            return self._take(iter(split_batch(state.batch, size)))
        if self._kept is None:
            with undisturbed(method_of(state)):  # iterating a loader draws from torch's generator
                self._kept = self._take(_microbatches(state.evaluators[0]))
        return self._kept

    def _take(self, batches: Iterator[PackedBatch]) -> list[PackedBatch]:
        taken: list[PackedBatch] = []
        for batch in batches:
            taken.append(batch)
            if sum(len(b["pixel_values"]) for b in taken) >= self.images:
                break
        return taken


def _microbatches(evaluator: Evaluator) -> Iterator[PackedBatch]:
    """Held-out batches, cut as the evaluator would cut them."""
    for batch in evaluator.dataloader.dataloader:
        size = evaluator.device_eval_microbatch_size or num_samples(batch)
        yield from split_batch(batch, int(size))


@contextmanager
def evaluating(state: State) -> Iterator[None]:
    """Eval mode, no gradients, the run's precision, whole weights; everything as before afterwards."""
    with (
        whole(state),
        undisturbed(method_of(state)),
        get_precision_context(state.precision, state.precision_config),
    ):
        yield
