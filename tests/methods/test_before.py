"""A checkpoint written at commit 1070dee, before there were methods, still trains on as it did then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lcl_composer.algorithms.ema import EMA
from tests.algorithms.training import logged, make_trainer

BEFORE = Path(__file__).parent / "before"


def test_losses_after_the_resume_are_those_of_then() -> None:
    then = json.loads((BEFORE / "losses.json").read_text())
    trainer = make_trainer([EMA(half_life="2ba")], duration="4ba", load=str(BEFORE / "ba2.pt"))
    trainer.fit()
    for name, losses in then.items():
        # Not bit for bit: the fixture comes from another processor than the test may run on.
        assert logged(trainer, f"loss/train/{name}") == pytest.approx(losses[2:], rel=1e-5, abs=1e-6), name
