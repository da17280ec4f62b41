"""Two launches of a run under a logger, the first one killed beyond its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from composer.core import Callback, State
from composer.loggers import Logger

from lcl_composer.callbacks.pictures import show
from lcl_composer.callbacks.run_record import RunRecord
from tests.callbacks.training import make_trainer

SETTINGS = {"run_name": "tiny", "optimizer": {"name": "adamw", "lr": 0.001}, "data": {"streams": [1, 2]}}
CONFIG = "run_name: tiny\noptimizer:\n  name: adamw\n  lr: 0.001\ndata:\n  streams: [1, 2]\n"
#: The steps of ``launch``, which says which launch logged it: 0 to 4 by the first, killed in batch 5.
STEPS = [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (4, 2.0), (5, 2.0)]


class Mark(Callback):
    """Logs which launch it is, shows a picture at the end of each batch, and stops the first launch."""

    def __init__(self, launch: int, stop_at: int):
        self.launch, self.stop_at = launch, stop_at

    def batch_start(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch == self.stop_at:
            raise KeyboardInterrupt
        logger.log_metrics({"launch": float(self.launch)})

    def batch_end(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch % 3 == 0:
            pixels = np.full((4, 6, 3), int(state.timestamp.batch), np.uint8)
            show(state, logger, "attention_maps", pixels)


def two_launches(folder: Path, logger: Callable[[], Any]) -> None:
    """Train to batch 5, go on from batch 2, train to batch 6."""
    for number, stop_at in ((1, 5), (2, -1)):
        checkpoints = folder / "checkpoints"
        callbacks = [RunRecord(folder, CONFIG), Mark(number, stop_at)]
        trainer = make_trainer(
            callbacks, [logger()], duration="6ba", save_folder=checkpoints, save_interval="2ba"
        )
        try:
            trainer.fit()
        except KeyboardInterrupt:
            assert number == 1
            for file in checkpoints.glob("*ba4*"):
                file.unlink()  # killed before it was written
            latest = checkpoints / "latest-rank0.pt"
            latest.unlink()
            latest.symlink_to("ep0-ba2-rank0.pt")
        finally:
            trainer.close()
