"""Is the data loader fast enough? Share of the training time that is spent waiting for batches."""

from __future__ import annotations

import time

from composer.core import Callback, State
from composer.loggers import Logger

from lcl_composer.algorithms.schedule import in_batches


class DataWait(Callback):
    """Log how long training waits for its batches.

    ``data/wait_seconds`` a batch and ``data/wait_share`` of the training time, means over ``every``
    batches; evaluations count to neither, and the first batch, which starts the workers, is left out. On
    several ranks each waits for the slowest one, so that the first rank's measure holds for all. Above a few
    hundredths, raise ``data.train.num_workers``, or bring the data nearer.

    Args:
        every: Composer time string in batches.

    Raises:
        ValueError: If ``every`` is not in batches.
    """

    def __init__(self, every: str = "10ba"):
        self.every = in_batches("every", every)
        self._asked = self._waited = 0.0
        self._batches = 0
        self._started: float | None = None

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """Note when the batch is asked for."""
        self._asked = time.perf_counter()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Add the wait for this batch, on all ranks: Composer has compared them before this event."""
        self._waited += time.perf_counter() - self._asked

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log at the end of a window."""
        assert state.timestamp.total_wct is not None, "the trainer keeps the time"
        now = state.timestamp.total_wct.total_seconds()
        if self._started is not None:
            self._batches += 1
            if self._batches < self.every:
                return
            share = self._waited / max(now - self._started, 1e-9)
            logger.log_metrics(
                {"data/wait_seconds": self._waited / self._batches, "data/wait_share": min(share, 1.0)}
            )
        self._started, self._batches, self._waited = now, 0, 0.0
