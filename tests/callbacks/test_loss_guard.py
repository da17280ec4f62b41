from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from composer.core import Callback

from lcl_composer.callbacks.loss_guard import LossGuard
from lcl_composer.callbacks.run_record import RunRecord
from lcl_composer.errors import ConfigError, LCLError
from lcl_composer.registry import callbacks
from tests.callbacks.training import make_trainer


class Ruin(Callback):
    """Give a batch a weight that is NaN, or one that makes the generation loss large."""

    def __init__(self, batch: int, value: float):
        self.batch, self.value = batch, value

    def batch_start(self, state, logger) -> None:
        if int(state.timestamp.batch) + 1 == self.batch:
            state.model.head.bias.data[0] = self.value


def guarded(folder: Path, ruin: Ruin, duration: str = "8ba", **settings):
    guard = callbacks.build({"name": "loss_guard", **settings})
    return make_trainer([RunRecord(folder, ""), guard, ruin], duration=duration, save_folder=folder / "ckpt")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_samples(tmp_path: Path) -> None:
    trainer = guarded(tmp_path, Ruin(3, math.nan), factor=None)
    with pytest.raises(LCLError) as caught:
        trainer.fit()
    message = str(caught.value)
    assert message.startswith(
        "batch 3: total loss is nan, generation loss is nan; "
        "samples: rank 0: train2-0, train2-1, train2-2 and 3 more (all of them in "
    )
    assert str(tmp_path / "bad_batch.json") in message
    assert "\n" not in message
    facts = json.loads((tmp_path / "bad_batch.json").read_text(), parse_constant=pytest.fail)
    assert facts["batch"] == 3
    assert facts["losses"]["total"] is None
    assert facts["losses"]["contrastive"] > 0
    assert len(facts["total_losses_before"]) == 2
    (rank,) = facts["ranks"]
    assert rank["ids"] == [f"train2-{i}" for i in range(6)]
    assert rank["previous_ids"] == [f"train1-{i}" for i in range(6)]
    # the batch is in no checkpoint: those of the batches before it are the last
    assert not list((tmp_path / "ckpt").glob("*ba3*"))
    assert list((tmp_path / "ckpt").glob("*ba2*"))


def test_a_spike_stops_the_run_once_the_window_is_full(tmp_path: Path) -> None:
    with pytest.raises(LCLError, match=r"batch 6: total loss is [\d.]+ after a median of [\d.]+; samples"):
        guarded(tmp_path, Ruin(6, 1000.0), window=5).fit()
    assert json.loads((tmp_path / "bad_batch.json").read_text())["batch"] == 6
    guarded(tmp_path / "early", Ruin(5, 1000.0), duration="5ba", window=5).fit()
    guarded(tmp_path / "off", Ruin(6, 1000.0), duration="6ba", window=5, factor=None).fit()
    assert not list(tmp_path.glob("*/bad_batch.json"))


def test_small_losses_may_multiply() -> None:
    guard = LossGuard(factor=2.0, window=3)
    guard.recent.extend([0.1, 0.1, 0.1])
    assert guard._reason({"total": 1.0}) == ""
    assert guard._reason({"total": 1.2}) != ""
    guard.recent.extend([5.0, 5.0, 100.0])  # the median does not mind
    assert guard._reason({"total": 9.9}) == ""
    assert guard._reason({"total": 10.1}) != ""


def test_the_window_survives_a_resume(tmp_path: Path) -> None:
    guarded(tmp_path, Ruin(99, 0.0), duration="5ba", window=5).fit()
    with pytest.raises(LCLError, match="batch 6: total loss is"):
        guarded(tmp_path, Ruin(6, 1000.0), duration="8ba", window=5).fit()


@pytest.mark.parametrize("settings", [{"factor": 1.0}, {"window": 0}])
def test_settings_that_make_no_sense_are_refused(settings) -> None:
    with pytest.raises(ConfigError, match="must be above 1 and window"):
        callbacks.build({"name": "loss_guard", **settings})
