"""How far a run is: a bar on a terminal, lines in a file, into which a bar would write its escape codes."""

from __future__ import annotations

import sys
import time

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from tqdm import tqdm

from lcl_composer.algorithms.schedule import share_done
from lcl_composer.callbacks.training_metrics import TrainingMetrics

#: Losses that a bar has room for; the total comes first.
_SHOWN = 3


def losses(state: State, digits: int) -> str:
    """The losses of the last batch by name, the total first."""
    named = {name.rpartition("/")[2]: value for name, value in state.total_loss_dict.items()}
    ordered = sorted(named.items(), key=lambda item: item[0] != "total")
    return ", ".join(f"{name} {value:.{digits}g}" for name, value in ordered)


def images_seen(state: State) -> int | None:
    """Images encoded so far over all ranks; None where nothing counts them."""
    found = next((c for c in state.callbacks if isinstance(c, TrainingMetrics)), None)
    return found.state_dict()["images_seen"] if found else None


class ProgressLines(Callback):
    """Print a line after the first batch, then every so often, and after the last.

    Args:
        seconds: Least time between two lines.
    """

    def __init__(self, seconds: float = 60.0):
        self.seconds = seconds
        self._printed = 0.0
        self._first: tuple[float, float] | None = None  # when the first batch ended, and what share it was
        self._counted: tuple[float, int] | None = None  # when the last line was printed, and images by then

    def batch_end(self, state: State, logger: Logger) -> None:
        """Print if it is time (rank 0)."""
        now, share = time.monotonic(), min(1.0, share_done(state))
        self._first = self._first or (now, share)
        if dist.get_global_rank() != 0 or (now < self._printed + self.seconds and share < 1):
            return
        self._printed = now
        line = f"batch {state.timestamp.batch.value}, {share:.0%}: {losses(state, 4)}"
        line += self._rate(now, images_seen(state))
        if (done := share - self._first[1]) > 0:  # the first batch starts the workers: it is no measure
            line += f"; {_span((now - self._first[0]) * (1 - share) / done)} left"
        print(line, flush=True)

    def _rate(self, now: float, seen: int | None) -> str:
        """Images a second since the last line."""
        before, self._counted = self._counted, (now, seen) if seen is not None else None
        if before is None or seen is None or seen == before[1]:
            return ""
        return f"; {(seen - before[1]) / max(now - before[0], 1e-9):,.0f} images/s"


class ProgressBar(Callback):
    """One bar for the whole run on standard error (rank 0), which fits into 100 columns."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Draw it."""
        if dist.get_global_rank() == 0:
            layout = "{percentage:3.0f}%|{bar:12}| {desc} [{elapsed}<{remaining}{postfix}]"
            self._bar = tqdm(total=1.0, file=sys.stderr, bar_format=layout, dynamic_ncols=True, initial=0.0)
            self._move(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Move it on."""
        self._move(state)

    def eval_start(self, state: State, logger: Logger) -> None:
        """Say why it stands still."""
        if self._bar is not None:
            self._bar.set_postfix_str("evaluating")

    def close(self, state: State, logger: Logger) -> None:
        """Leave it as it is and go on below."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    fit_end = close

    def _move(self, state: State) -> None:
        if self._bar is None:
            return
        done = min(1.0, share_done(state))
        self._bar.set_description_str(f"batch {state.timestamp.batch.value}", refresh=False)
        if state.total_loss_dict:
            shown = losses(state, 3).split(", ")[:_SHOWN]
            self._bar.set_postfix_str(", ".join(shown), refresh=False)
        if self._bar.n == 0:
            self._bar.initial = self._bar.n = done  # what earlier launches did took none of this one's time
            self._bar.refresh()
        else:
            self._bar.update(done - self._bar.n)


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{round(seconds)} s" if seconds < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
