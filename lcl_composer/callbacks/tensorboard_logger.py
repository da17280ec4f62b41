"""TensorBoard whose curves do not go back after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import composer.loggers
from composer.core import State
from composer.loggers import Logger


class TensorboardLogger(composer.loggers.TensorboardLogger):
    """Write metrics and pictures for TensorBoard to ``runs/NAME/tensorboard``.

    Args:
        log_dir: Folder in which ``tensorboard/NAME`` is made; the run's folder unless set.
        flush_interval: Batches between two event files.
    """

    def __init__(self, log_dir: str = ".", flush_interval: int = 100):
        super().__init__(str(Path(log_dir, "tensorboard")), flush_interval)

    def after_load(self, state: State, logger: Logger) -> None:
        """Hide what an earlier launch wrote beyond the batch that training goes on from."""
        if self.writer is not None and state.timestamp.batch > 0:
            self.writer.close()  # it opens another file, in which it says so
            self.writer.purge_step = int(state.timestamp.batch)

    def log_settings(self, settings: dict[str, Any], text: str) -> None:
        """Show the settings as a text, ``config``."""
        if self.writer is not None:
            self.writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))

    def batch_end(self, state: State, logger: Logger) -> None:
        """Write to the disk: a resume goes on from a checkpoint that may be younger than the last file."""
        super().batch_end(state, logger)
        if self.writer is not None:
            self.writer.flush()
