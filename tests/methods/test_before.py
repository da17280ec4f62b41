"""Checkpoints written at commit 1070dee, before there were methods, still train on as they did then.

They come from another processor than the test may run on, so that losses are not compared bit for bit.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lcl_composer.algorithms.ema import EMA
from tests import runs
from tests.algorithms.training import logged, make_trainer
from tests.methods.whole_runs import fit

BEFORE = Path(__file__).parent / "before"


def test_losses_after_the_resume_are_those_of_then() -> None:
    then = json.loads((BEFORE / "losses.json").read_text())
    trainer = make_trainer([EMA(half_life="2ba")], duration="4ba", load=str(BEFORE / "ba2.pt"))
    trainer.fit()
    for name, losses in then.items():
        assert logged(trainer, f"loss/train/{name}") == pytest.approx(losses[2:], rel=1e-5, abs=1e-6), name


def test_a_run_folder_of_then_goes_on(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As `lcl train` does it: found by its name, with the weights, the average and the place in the data."""
    shutil.copytree(BEFORE / "run", tmp_path / "runs/tiny")
    (tmp_path / "runs/tiny/checkpoints/latest-rank0.pt").symlink_to("ep0-ba2-rank0.pt")
    algorithms = {"ema": {"half_life": "2ba"}}
    values = runs.settings(data, max_duration="4ba", save_interval="2ba")
    values["algorithms"] |= algorithms
    values["model"]["encoder"]["model_args"] |= {"embed_dim": 8, "depth": 1, "num_heads": 1}
    values["model"]["language_model"] |= {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    trainer = fit(tmp_path, values)
    assert trainer.state.timestamp.batch == 4
    found = runs.read_metrics(tmp_path)
    assert list(found) == [1, 2, 3, 4]
    for step, losses in json.loads((BEFORE / "run_losses.json").read_text()).items():
        assert {name: found[int(step)][name] for name in losses} == pytest.approx(losses, rel=1e-5, abs=1e-6)
