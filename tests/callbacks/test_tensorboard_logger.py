from __future__ import annotations

import time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lcl_composer.callbacks.tensorboard_logger import TensorboardLogger
from tests.callbacks.trackers import two_launches


def test_steps_do_not_go_back_after_a_resume(tmp_path: Path) -> None:
    def logger() -> TensorboardLogger:
        time.sleep(1)  # TensorBoard reads files by the second in their names
        return TensorboardLogger(str(tmp_path))

    two_launches(tmp_path, logger)
    events = EventAccumulator(str(tmp_path / "tensorboard/tiny"))
    events.Reload()
    marks = [(event.step, event.value) for event in events.Scalars("launch")]
    assert marks == [(0, 1), (1, 1), (2, 2), (3, 2), (4, 2), (5, 2)]
    assert [image.step for image in events.Images("attention_maps")] == [3, 6]
