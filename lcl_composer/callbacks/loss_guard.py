"""Stop when the loss is lost, and say which samples were in the batch."""

from __future__ import annotations

import json
import math
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from lcl_composer.callbacks.run_record import folder_of
from lcl_composer.errors import LCLError

#: A loss has to rise by this much (nats) to be a spike, however small it was.
_LEAST_RISE = 1.0


class LossGuard(Callback):
    """End the run at a loss that is not finite, or that is far above those before it.

    The losses are those of the global batch, so that all ranks stop at the same batch. Rank 0 writes
    ``bad_batch.json`` into the run folder: the reason, the losses, and for each rank the sample ids of the
    batch and of the one before, whose step may have been the one that did it. The batch is in no checkpoint:
    launched again, the run goes on from the last one and meets the same batch.

    Args:
        factor: A spike is a total loss of more than ``factor`` times the median of the window, and at least 1
            above it. None: only losses that are not finite stop the run.
        window: Batches that the median is taken over; until there are as many, nothing is a spike.

    Raises:
        ValueError: If ``factor`` is not above 1 or ``window`` is below 1.
    """

    def __init__(self, factor: float | None = 3.0, window: int = 50):
        if (factor is not None and factor <= 1) or window < 1:
            raise ValueError(f"factor {factor} must be above 1 and window {window} at least 1")
        self.factor = factor
        self.recent: deque[float] = deque(maxlen=window)
        self._previous: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """The window, so that a resumed run compares with it."""
        return {"recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the window of a checkpoint."""
        self.recent.extend(state["recent"])

    def batch_end(self, state: State, logger: Logger) -> None:
        """Judge the batch; raises LCLError, on all ranks, if its loss is lost."""
        losses = {name.removeprefix("loss/train/"): value for name, value in state.total_loss_dict.items()}
        ids = list(state.batch["ids"])
        if reason := self._reason(losses):
            self._stop(state, reason, losses, ids)
        self.recent.append(losses["total"])
        self._previous = ids

    def _reason(self, losses: dict[str, float]) -> str:
        """What is wrong with the losses, "" for nothing."""
        lost = [f"{name} loss is {value}" for name, value in losses.items() if not math.isfinite(value)]
        if lost or self.factor is None or len(self.recent) < (self.recent.maxlen or 0):
            return ", ".join(lost)
        usual = median(self.recent)
        if losses["total"] > max(self.factor * usual, usual + _LEAST_RISE):
            return f"total loss is {losses['total']:.4g} after a median of {usual:.4g}"
        return ""

    def _stop(self, state: State, reason: str, losses: dict[str, float], ids: list[str]) -> None:
        """Write what there is to know, and raise."""
        ranks = dist.all_gather_object({"ids": ids, "previous_ids": self._previous})
        batch, file = int(state.timestamp.batch), folder_of(state) / "bad_batch.json"
        if dist.get_global_rank() == 0:
            facts = {
                "batch": batch,
                "epoch": int(state.timestamp.epoch),
                "reason": reason,
                "losses": {name: value if math.isfinite(value) else None for name, value in losses.items()},
                "total_losses_before": list(self.recent),
                "ranks": [{"rank": rank, **of_rank} for rank, of_rank in enumerate(ranks)],
            }
            _write(file, facts)
        named = "; ".join(f"rank {rank}: {_some(found['ids'])}" for rank, found in enumerate(ranks))
        raise LCLError(
            f"batch {batch}: {reason}; samples: {named} (all of them in {file}). Look at them; lower "
            "optimizer.lr or lengthen the warm-up; callbacks.loss_guard.factor says what a spike is"
        )


def _write(file: Path, facts: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts, indent=2) + "\n")


def _some(ids: list[str], most: int = 3) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")
