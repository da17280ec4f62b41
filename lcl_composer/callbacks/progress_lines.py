"""How far a run is, as lines for a log file: a progress bar writes its escape codes into one."""

from __future__ import annotations

import time

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist


class ProgressLines(Callback):
    """Print a line after the first batch, then every so often, and after the last.

    Args:
        seconds: Least time between two lines.
    """

    def __init__(self, seconds: float = 30.0):
        self.seconds = seconds
        self._started = self._printed = 0.0
        self._share_before = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the clock."""
        self._started, self._share_before = time.monotonic(), _share(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Print if it is time (rank 0)."""
        now, share = time.monotonic(), _share(state)
        if dist.get_global_rank() != 0 or (now < self._printed + self.seconds and share < 1):
            return
        self._printed = now
        losses = ", ".join(
            f"{name.rpartition('/')[2]} {value:.4g}" for name, value in state.total_loss_dict.items()
        )
        left = (now - self._started) * (1 - share) / max(share - self._share_before, 1e-9)
        print(f"batch {state.timestamp.batch.value}, {share:.0%}: {losses}; {_span(left)} left", flush=True)


def _share(state: State) -> float:
    """The share of the run that is done, 0 to 1; of a run of epochs by its batches."""
    assert state.max_duration is not None, "the config gives it"
    if state.max_duration.unit.value == "ep" and state.dataloader_len is not None:
        total = state.max_duration.value * int(state.dataloader_len)
        return min(1.0, state.timestamp.batch.value / max(total, 1))
    elapsed = state.get_elapsed_duration()
    return min(1.0, float(elapsed.value)) if elapsed is not None else 0.0


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{round(seconds)} s" if seconds < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
