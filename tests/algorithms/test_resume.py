"""Two batches, a checkpoint, a new process's worth of objects, two more: bitwise the run of four."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from composer import Algorithm, Trainer

from lcl_composer.algorithms.contrastive_temperature import ContrastiveTemperature
from lcl_composer.algorithms.contrastive_weight import ContrastiveWeight
from lcl_composer.algorithms.ema import EMA
from lcl_composer.algorithms.grad_cache import GradCache
from lcl_composer.algorithms.gradient_clipping import GradientClipping
from lcl_composer.algorithms.image_resolution import ImageResolution
from lcl_composer.algorithms.layer_freezing import LayerFreezing
from lcl_composer.algorithms.patch_dropout import PatchDropout
from lcl_composer.algorithms.stop_gradient import StopGradient
from tests.algorithms.training import assert_same, logged, make_trainer, weights

CASES: dict[str, Callable[[], list[Algorithm]]] = {
    "none": list,
    "temperature_learnable": lambda: [ContrastiveTemperature("learnable", floor=0.05, ceiling=0.071)],
    "temperature_warmup_over": lambda: [ContrastiveTemperature("warmup", start=0.1, end=0.05, until="1ba")],
    "temperature_warmup_under_way": lambda: [ContrastiveTemperature("warmup", 0.1, 0.05, until="3ba")],
    "temperature_linear": lambda: [ContrastiveTemperature("linear", start=0.1, end=0.05)],
    "weight": lambda: [ContrastiveWeight(1, 0, until="3ba")],
    "ema": lambda: [EMA("2ba", update_interval="2ba", begin="2ba")],
    "ema_of_the_encoder": lambda: [EMA("2ba", part="encoder", export=False)],
    "grad_cache": lambda: [GradCache()],
    "clipping": lambda: [GradientClipping("norm", 0.1)],
    "resolution": lambda: [ImageResolution(8, until="3ba")],
    "freezing": lambda: [LayerFreezing(["encoder"], 1, 0, begin="1ba", until="3ba")],
    "frozen": lambda: [LayerFreezing(["encoder"])],
    "patch_dropout": lambda: [PatchDropout(0.5, end=0.25)],
    "stop_gradient": lambda: [StopGradient(contexts=True)],
}


@pytest.mark.parametrize("name", list(CASES))
def test_resume(name: str, tmp_path: Path) -> None:
    whole = make_trainer(CASES[name](), folder=tmp_path)
    whole.fit()
    resumed = make_trainer(CASES[name](), load=str(tmp_path / "ba2.pt"))
    assert int(resumed.state.timestamp.batch) == 2
    resumed.fit()
    assert_same(weights(resumed), weights(whole))
    for metric in ("loss/train/total", "loss/temperature", "loss/contrastive_weight"):
        assert logged(resumed, metric) == logged(whole, metric)[-2:], metric


def test_resume_within_an_epoch_of_a_run_of_epochs(tmp_path: Path) -> None:
    def trainer(load: str | None = None) -> Trainer:
        algorithms = [ContrastiveTemperature("cosine", start=0.1, end=0.05)]
        return make_trainer(algorithms, duration="2ep", batch_count=4, folder=tmp_path, load=load)

    whole = trainer()
    whole.fit()
    values = logged(whole, "loss/temperature")
    assert len(set(values)) == len(values) == 8, "it moves with every batch"
    resumed = trainer(str(tmp_path / "ba6.pt"))
    resumed.fit()
    assert logged(resumed, "loss/temperature") == values[-2:]
    assert_same(weights(resumed), weights(whole))
