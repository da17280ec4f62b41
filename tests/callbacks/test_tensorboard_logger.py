from __future__ import annotations

import time
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lcl_composer.callbacks.tensorboard_logger import TensorboardLogger
from tests.callbacks.training import make_trainer


class Mark(Callback):
    """Logs which launch it is, and stops the first one."""

    def __init__(self, launch: int, stop_at: int):
        self.launch, self.stop_at = launch, stop_at

    def batch_start(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch == self.stop_at:
            raise KeyboardInterrupt
        logger.log_metrics({"launch": float(self.launch)})


def launch(folder: Path, number: int, stop_at: int = -1) -> None:
    logger, checkpoints = TensorboardLogger(str(folder)), folder / "checkpoints"
    trainer = make_trainer(
        [Mark(number, stop_at)],
        [logger],
        duration="6ba",
        save_folder=checkpoints,
        save_interval="2ba",
    )
    try:
        trainer.fit()
    except KeyboardInterrupt:
        assert stop_at >= 0
        for file in checkpoints.glob("*ba4*"):
            file.unlink()  # killed before it was written
        latest = checkpoints / "latest-rank0.pt"
        latest.unlink()
        latest.symlink_to("ep0-ba2-rank0.pt")
    finally:
        trainer.close()


def test_steps_do_not_go_back_after_a_resume(tmp_path: Path) -> None:
    launch(tmp_path, 1, stop_at=5)
    time.sleep(1)  # TensorBoard reads files by the second in their names
    launch(tmp_path, 2)
    events = EventAccumulator(str(tmp_path / "tensorboard/tiny"))
    events.Reload()
    marks = [(event.step, event.value) for event in events.Scalars("launch")]
    assert marks == [(0, 1), (1, 1), (2, 2), (3, 2), (4, 2), (5, 2)]
