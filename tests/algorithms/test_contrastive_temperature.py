from __future__ import annotations

from typing import Any

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger

from lcl_composer.algorithms.contrastive_temperature import ContrastiveTemperature
from lcl_composer.algorithms.gradient_clipping import GradientClipping
from tests.algorithms.training import Record, assert_same, logged, make_trainer, weights
from tests.models.tiny import tiny_model


def temperatures(*arguments: Any, **options: Any) -> list[float]:
    """The temperature of each of four batches."""
    trainer = make_trainer([ContrastiveTemperature(*arguments, **options)])
    trainer.fit()
    return logged(trainer, "loss/temperature")


class Scales(Callback):
    """The scale that the loss of each batch used."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def before_loss(self, state: State, logger: Logger) -> None:
        self.seen.append(float(state.model.logit_scale.exp()))


def test_schedules() -> None:
    assert temperatures("constant", start=0.5) == pytest.approx([0.5] * 4)
    assert temperatures("linear", start=0.1, end=0.5) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert temperatures("linear", start=0.1, end=0.3, begin="1ba", until="3ba") == pytest.approx(
        [0.1, 0.1, 0.2, 0.3]
    )
    cosine = temperatures("cosine", start=0.1, end=0.5)
    assert cosine == pytest.approx([0.1, 0.1 + 0.4 * (1 - 0.5**0.5) / 2, 0.3, 0.5 - 0.4 * (1 - 0.5**0.5) / 2])


def test_the_loss_uses_what_is_logged_and_the_checkpointed_parameter_holds_it() -> None:
    scales = Scales()
    trainer = make_trainer([ContrastiveTemperature("linear", start=0.1, end=0.5)], [scales], micro=8)
    trainer.fit()
    assert [1 / s for s in scales.seen] == pytest.approx(logged(trainer, "loss/temperature"))
    assert float(trainer.state.model.logit_scale.exp()) == pytest.approx(1 / 0.5), (
        "as the next batch wants it"
    )


def test_warm_up_then_learnable() -> None:
    seen = temperatures("warmup", start=0.2, end=0.1, until="2ba")
    assert seen[:3] == pytest.approx([0.2, 0.15, 0.1], abs=1e-6)
    assert seen[3] == pytest.approx(0.1, rel=0.02)
    assert seen[3] != pytest.approx(0.1, rel=1e-4)


def test_floor_and_ceiling_hold_a_learnable_temperature_which_can_come_back() -> None:
    record = Record()
    bounded = ContrastiveTemperature("learnable", start=0.1, floor=0.0999, ceiling=0.1001)
    trainer = make_trainer([bounded], [record], micro=8)
    trainer.fit()
    seen = logged(trainer, "loss/temperature")
    assert all(0.0999 - 1e-6 <= t <= 0.1001 + 1e-6 for t in seen)
    assert any(abs(t - 0.1) > 0.9e-4 for t in seen), "a step of 0.01 reaches a bound"
    assert float(record.gradients[-1]["logit_scale"]) != 0, "a bound does not cut the gradient off"


def test_learnable_without_settings_is_the_default() -> None:
    plain, same = make_trainer(), make_trainer([ContrastiveTemperature("learnable")])
    plain.fit()
    same.fit()
    assert_same(weights(plain), weights(same), tolerance=1e-5)


def test_a_fixed_temperature_takes_no_part_in_the_norm_that_is_clipped() -> None:
    record = Record()  # callbacks see the gradients after the algorithms
    model = tiny_model(contrastive_weight=1e4)
    algorithms = [ContrastiveTemperature("constant"), GradientClipping("norm", 1.0)]
    make_trainer(algorithms, [record], model=model, duration="1ba").fit()
    gradients = record.gradients[0]
    assert float(gradients["logit_scale"]) == 0
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    assert float(norm) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "linear", "start": 0.1}, "needs end"),
        ({"policy": "learnable", "end": 0.1}, "takes no end"),
        ({"policy": "constant", "start": 0.0}, "above 0"),
        ({"policy": "constant", "start": 0.1, "floor": 0.2}, "between floor"),
        ({"policy": "learnable", "floor": 0.2, "ceiling": 0.1}, "between floor"),
    ],
)
def test_settings_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastiveTemperature(**arguments)
