from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer.core import Timestamp
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import BinaryAccuracy

from lcl_composer.callbacks.stoppers import EarlyStopper, ThresholdStopper
from lcl_composer.errors import ConfigError
from lcl_composer.methods.metrics import HeldOutLoss


class FakeState:
    """A run whose held-out metric takes given values, one an epoch."""

    def __init__(self, metric: Metric, values: list[float]):
        self.metric, self.values = metric, values
        self.eval_metrics = {"eval": {"contrastive": metric}}
        self.train_metrics: dict[str, Metric] = {}
        self.dataloader_label = "eval"
        self.timestamp = Timestamp()
        self.stopped = False

    def stop_training(self) -> None:
        self.stopped = True

    def evaluate(self, stopper: Any) -> list[bool]:
        """Whether the run is stopped after each evaluation."""
        told = []
        for value in self.values:
            self.timestamp = self.timestamp.to_next_epoch()
            self.metric.compute = lambda value=value: torch.tensor(value)  # type: ignore[method-assign]
            stopper.eval_end(self, None)
            told.append(self.stopped)
        return told


def run(stopper: Any, values: list[float], metric: Metric | None = None) -> list[bool]:
    state = FakeState(metric or HeldOutLoss("contrastive"), values)
    stopper.fit_start(state, None)
    return state.evaluate(stopper)


def test_a_falling_loss_goes_on_and_a_rising_one_stops() -> None:
    assert run(EarlyStopper("contrastive"), [3.0, 2.0, 1.0, 0.5]) == [False] * 4
    assert run(EarlyStopper("contrastive"), [1.0, 2.0, 3.0]) == [False, False, True]


def test_an_accuracy_rises_and_comp_says_otherwise() -> None:
    assert run(EarlyStopper("contrastive"), [0.1, 0.2, 0.3], BinaryAccuracy()) == [False] * 3
    assert run(EarlyStopper("contrastive", comp="greater"), [3.0, 2.0, 1.0]) == [False, False, True]


def test_the_best_value_outlives_a_resume() -> None:
    first = EarlyStopper("contrastive")
    assert run(first, [1.0]) == [False]
    second = EarlyStopper("contrastive")
    second.load_state_dict(first.state_dict())
    state = FakeState(HeldOutLoss("contrastive"), [2.0, 2.0])
    state.timestamp = Timestamp(epoch=1)
    second.fit_start(state, None)  # type: ignore[arg-type]
    assert state.evaluate(second) == [False, True]
    assert EarlyStopper("contrastive").state_dict() == {}
    for other in (EarlyStopper("generation"), EarlyStopper("contrastive", dataloader_label="other")):
        other.load_state_dict(first.state_dict())
        assert other.best is None


@pytest.mark.parametrize("changed", [{"patience": "1sec"}, {"patience": "-1ep"}, {"min_delta": -0.1}])
def test_what_composer_would_find_in_mid_run(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"patience '.*' must be in ep or ba|min_delta -0.1 must not"):
        EarlyStopper("contrastive", **changed)


def test_a_loss_passes_a_threshold_downwards() -> None:
    assert run(ThresholdStopper("contrastive", 1.5), [3.0, 2.0, 1.0]) == [False, False, True]
    assert run(ThresholdStopper("contrastive", 1.5, comp="greater"), [1.0, 2.0]) == [False, True]


@pytest.mark.parametrize("stopper", [EarlyStopper("nothing"), ThresholdStopper("nothing", 1.0)])
def test_metrics_that_are_not_there_are_told_at_the_start(stopper: Any) -> None:
    with pytest.raises(ConfigError, match=r"no metric 'nothing'.*there are contrastive \(eval\)"):
        run(stopper, [])
    with pytest.raises(ConfigError, match=r"nothing is held out, set data\.eval"):
        stopper.fit_start(SimpleNamespace(eval_metrics={}), None)


def test_a_metric_without_a_direction_needs_one() -> None:
    with pytest.raises(ConfigError, match="does not say what is better; set comp"):
        run(EarlyStopper("contrastive"), [], MeanMetric())
