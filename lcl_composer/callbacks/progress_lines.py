"""How far a run is, as lines for a log file: a progress bar writes its escape codes into one."""

from __future__ import annotations

import time

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from lcl_composer.algorithms.schedule import share_done


class ProgressLines(Callback):
    """Print a line after the first batch, then every so often, and after the last.

    Args:
        seconds: Least time between two lines.
    """

    def __init__(self, seconds: float = 30.0):
        self.seconds = seconds
        self._printed = 0.0
        self._first: tuple[float, float] | None = None  # when the first batch ended, and what share it was

    def batch_end(self, state: State, logger: Logger) -> None:
        """Print if it is time (rank 0)."""
        now, share = time.monotonic(), min(1.0, share_done(state))
        self._first = self._first or (now, share)
        if dist.get_global_rank() != 0 or (now < self._printed + self.seconds and share < 1):
            return
        self._printed = now
        losses = ", ".join(
            f"{name.rpartition('/')[2]} {value:.4g}" for name, value in state.total_loss_dict.items()
        )
        line = f"batch {state.timestamp.batch.value}, {share:.0%}: {losses}"
        if (done := share - self._first[1]) > 0:  # the first batch starts the workers: it is no measure
            line += f"; {_span((now - self._first[0]) * (1 - share) / done)} left"
        print(line, flush=True)


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{round(seconds)} s" if seconds < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
