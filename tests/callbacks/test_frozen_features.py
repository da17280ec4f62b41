"""k-NN and linear probe while training goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from composer.core import Algorithm

from lcl_composer.algorithms.ema import EMA
from lcl_composer.callbacks.averaged import averaged
from lcl_composer.callbacks.frozen_features import FrozenFeatures
from lcl_composer.callbacks.jsonl_logger import JsonLinesLogger
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.registry import callbacks
from lcl_composer.report.metrics_file import read_metrics
from tests.algorithms.training import make_trainer as make_tiny_trainer
from tests.algorithms.training import weights
from tests.callbacks.training import make_trainer
from tests.evaluation.fakes import FakeLCL
from tests.evaluation.folders import write_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("images")
    return {
        "train": str(write_folder(root / "train", 6)),
        "val": str(write_folder(root / "val", 4, seed=1)),
    }


@pytest.mark.parametrize("name", ["knn", "linear_probe"])
def test_colours_are_told_apart_without_disturbing_training(name: str, folders, tmp_path: Path) -> None:
    plain, watched = FakeLCL(dropout=0.3), FakeLCL(dropout=0.3)
    watched.load_state_dict(plain.state_dict())
    make_trainer([], model=plain, duration="4ba").fit()
    callback = callbacks.build({"name": name, "every": "2ba", **folders})
    make_trainer([callback], [JsonLinesLogger(tmp_path / "m.jsonl")], model=watched, duration="4ba").fit()
    rows = [row for row in read_metrics(tmp_path / "m.jsonl") if f"{name}/accuracy" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[-1][f"{name}/chance"] == pytest.approx(1 / 3)
    assert rows[-1][f"{name}/accuracy"] > 0.9
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


def test_a_missing_folder_stops_the_run_before_it_trains(folders, tmp_path: Path) -> None:
    knn = callbacks.build({"name": "knn", "train": folders["train"], "val": str(tmp_path / "absent")})
    trainer = make_trainer([knn])
    with pytest.raises(DataError, match="absent: no such folder"):
        trainer.fit()
    assert trainer.state.timestamp.batch == 0
    other = write_folder(tmp_path / "other", 1, ("blue", "green"))
    knn = callbacks.build({"name": "knn", "train": folders["train"], "val": str(other)})
    with pytest.raises(DataError, match="differ in the classes red"):
        make_trainer([knn]).fit()


def test_settings_that_make_no_sense_are_refused(folders) -> None:
    with pytest.raises(ConfigError, match="k 0 and temperature"):
        callbacks.build({"name": "knn", "k": 0, **folders})
    with pytest.raises(ConfigError, match=r"callbacks\.linear_probe\.batch_size: is 0, must be at least 1"):
        callbacks.build({"name": "linear_probe", "batch_size": 0, **folders})


def test_features_that_the_method_lacks_are_refused_before_it_trains(folders) -> None:
    """A linear probe of latents, and a method that pools nothing."""
    probe = callbacks.build({"name": "linear_probe", "features": "pooled", **folders})
    model = FakeLCL()
    model.part_names = ("encoder",)  # type: ignore[misc]
    with pytest.raises(
        ConfigError, match=r"linear_probe\.features: pooled, but .* has no pooler; use patch_mean"
    ):
        make_trainer([probe], model=model).fit()


class KeepFeatures(FrozenFeatures):
    """The features themselves."""

    name = "kept"

    def measure(self, train, val) -> dict[str, float]:
        self.kept = val[0]
        return {}


@pytest.mark.parametrize("evaluate", [True, False])
def test_the_average_is_measured_where_evaluations_measure_it(evaluate: bool, folders) -> None:
    keep = KeepFeatures("3ba", folders["train"], folders["val"], "patch_mean", 64)
    ema = EMA("2ba", evaluate=evaluate, export=False)
    trainer = make_tiny_trainer([ema], [keep], duration="3ba")
    trainer.fit()
    trained, kept = weights(trainer), keep.kept
    assert not torch.equal(trained["generation_head.weight"], ema.average["generation_head.weight"])
    with averaged(trainer.state, "export"):  # not set: nothing changes
        assert all(torch.equal(trained[name], tensor) for name, tensor in weights(trainer).items())
    keep.act(trainer.state, trainer.logger)
    assert torch.equal(keep.kept, kept)
    trainer.state.algorithms = _without(ema, trainer.state.algorithms)
    keep.act(trainer.state, trainer.logger)
    assert torch.equal(keep.kept, kept) != evaluate
    assert all(torch.equal(trained[name], tensor) for name, tensor in weights(trainer).items())


def _without(ema: EMA, algorithms: list[Algorithm]) -> list[Algorithm]:
    return [algorithm for algorithm in algorithms if algorithm is not ema]
