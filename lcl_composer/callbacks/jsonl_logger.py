"""Metrics as JSON lines: one line a batch, steps that never go back."""

from __future__ import annotations

from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from lcl_composer.report.metrics_file import cut_after, format_line, last_step


class JsonLinesLogger(LoggerDestination):
    """Append ``{"step": batches done, "epoch", "sample", "token", "seconds", **metrics}`` to a file.

    A batch's line holds everything logged from its loading to its end, the loss included, under the number
    of batches then done; Composer itself files the loss under the number before. What is logged between two
    batches (an evaluation) follows on a line of its own with the same step. Each line is flushed at once.
    Metrics of Composer's under ``time/`` are left out: the line's own counters say the same.

    When a run resumes, lines beyond the checkpoint's batch are cut off, so that the file reads as if the run
    had never stopped. What a batch had logged when it crashed is not written. Only rank 0 writes.

    Args:
        path: The file, ``runs/NAME/metrics.jsonl``; its folder is created.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.pending: dict[str, Any] = {}

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Take numbers for the next line; the line's step is set when it is written."""
        del step
        for name, value in metrics.items():
            if name.startswith("time/"):
                continue
            if isinstance(value, torch.Tensor):
                value = value.item() if value.numel() == 1 else None
            if isinstance(value, Real):
                self.pending[name] = int(value) if isinstance(value, Integral) else float(value)

    def after_load(self, state: State, logger: Logger) -> None:
        """Cut the file at the batch that training continues from; say what it lacks before that."""
        if dist.get_global_rank() != 0:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        batch = int(state.timestamp.batch)
        cut_after(self.path, batch)
        if (last := last_step(self.path)) < batch:
            print(
                f"note: {self.path} ends at batch {last}, and the checkpoint is of batch {batch}: what was "
                "logged in between is in no curve, and not in the losses of the start",
                flush=True,
            )

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """Write what was logged since the last batch ended."""
        self._write(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Write the batch's line."""
        self._write(state)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Write the evaluation's line."""
        self._write(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Write what was logged at the end of training."""
        self._write(state)

    def _write(self, state: State) -> None:
        values, self.pending = self.pending, {}
        if not values or dist.get_global_rank() != 0:
            return
        now = state.timestamp
        counters = {
            "epoch": int(now.epoch),
            "sample": int(now.sample),
            "token": int(now.token),
            "seconds": round(now.total_wct.total_seconds(), 3) if now.total_wct else 0.0,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(format_line(int(now.batch), counters | values))
