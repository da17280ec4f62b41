"""Several launches of a run are one run at an experiment tracker, and its steps do not go back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lcl_composer.callbacks.launches import Launches, Tracker, pictures_of
from lcl_composer.callbacks.mlflow_logger import MLFlowLogger
from lcl_composer.callbacks.tensorboard_logger import TensorboardLogger
from lcl_composer.callbacks.wandb_logger import WandBLogger


def test_steps_of_an_earlier_launch_are_not_logged_again(tmp_path: Path) -> None:
    first = Launches(tmp_path / "new/launches.json", "tiny")
    assert first.id is None
    first.begin("abc")
    assert [first.is_new(step) for step in (0, 1, 1, 2, 7)] == [True] * 5
    for step in (0, 1, 7, 2):
        first.note(step)
    second = Launches(tmp_path / "new/launches.json", "tiny")
    assert second.id == "abc"
    second.begin("abc")
    assert [second.is_new(step) for step in (5, 6, 7, 8, 8)] == [False, False, True, True, True]
    assert second.is_new(7), "the last step of the earlier launch may have been cut off"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "x"}', '{"id": "x", "step": "y"}', "[" * 100_000])
def test_a_damaged_note_begins_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    found = Launches(tmp_path / "x", "tiny")
    assert found.is_new(0)


def test_a_run_that_was_copied_is_another_run(tmp_path: Path) -> None:
    first = Launches(tmp_path / "x", "tiny")
    first.begin("abc")
    first.note(7)
    copied = Launches(tmp_path / "x", "copied")
    assert copied.id is None
    assert copied.is_new(0)
    (tmp_path / "x").write_text('{"id": "abc", "step": 7}')  # as versions before wrote it
    assert Launches(tmp_path / "x", "copied").id == "abc"


def test_pictures() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    assert [p.shape for p in pictures_of(pixels)] == [(2, 3, 3)]
    assert len(pictures_of([pixels, pixels])) == 2


def test_every_tracker_keeps_the_settings() -> None:
    for logger in (MLFlowLogger(), TensorboardLogger(), WandBLogger()):
        assert isinstance(logger, Tracker)
