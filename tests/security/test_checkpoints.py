"""A checkpoint from a stranger: whatever in it is code does not run, at any of the places that read one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from composer import Trainer
from composer.core import State
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.api import CheckpointException

from lcl_composer.checkpoint import check_whole, only_safe_loads, read_model_state
from lcl_composer.compatibility import mend_composer
from lcl_composer.config import compose
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.models.weights import read_state
from tests.callbacks.training import make_trainer
from tests.runs import settings, write_yaml
from tests.security.harm import Harm, harmful, harms


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a run mends in the process is put back."""
    monkeypatch.setattr(State, "_apply_required_algorithms", State._apply_required_algorithms)
    monkeypatch.setattr(filesystem, "pickle", filesystem.pickle)  # type: ignore[attr-defined]
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    yield
    os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD", None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of a checkpoint that Composer wrote."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = make_trainer(save_folder=folder, held_out=False)
    trainer.fit()
    trainer.close()
    only_safe_loads()
    try:
        return torch.load(max(folder.glob("ep*.pt")), weights_only=True)
    finally:
        os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD")


def resumed(folder: Path, content: dict[str, Any]) -> Trainer:
    """A trainer that goes on from this checkpoint, as a run does."""
    folder.mkdir()
    torch.save(content, folder / "latest-rank0.pt")
    return make_trainer(save_folder=folder, held_out=False, duration="3ba")


@pytest.mark.parametrize("place", ["rng", "algorithms", "callbacks", "optimizers", "model"])
def test_a_pickle_anywhere_in_it_is_refused(tmp_path: Path, saved: dict[str, Any], place: str) -> None:
    mark, state = tmp_path / "ran", saved["state"]
    if place == "rng":
        content = {**saved, "rng": [{**saved["rng"][0], "python": Harm(mark)}]}
    else:
        content = {**saved, "state": {**state, place: Harm(mark)}}
    only_safe_loads()
    mend_composer()
    with pytest.raises(Exception, match="Weights only load failed"):
        resumed(tmp_path / "run", content)
    for read in (read_model_state, check_whole):
        with pytest.raises(DataError, match="truncated or holds code"):
            read(tmp_path / "run/latest-rank0.pt")
    assert not mark.exists()


def composers_own() -> Any:
    """The method as Composer has it, whatever runs of earlier tests have mended in this process."""
    spec = find_spec("composer.core.state")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.State._apply_required_algorithms


def test_the_repr_of_an_algorithm_is_not_evaluated(tmp_path: Path, saved: dict[str, Any]) -> None:
    """A string, which weights-only loading lets through: Composer hands it to ``eval``."""
    marks = [tmp_path / "guarded", tmp_path / "unguarded"]
    hostile = [
        ("BlurPool", {"repr": f"__name__ if __import__('os').mkdir({str(m)!r}) else 1"}) for m in marks
    ]
    only_safe_loads()
    mend_composer()
    trainer = resumed(tmp_path / "a", {**saved, "state": {**saved["state"], "algorithms": hostile[:1]}})
    assert int(trainer.state.timestamp.batch) == 2, "the rest of it is loaded"
    trainer.close()
    assert not marks[0].exists()
    State._apply_required_algorithms = composers_own()
    unguarded = {**saved["state"], "algorithms": hostile[1:]}
    with pytest.raises(ValueError, match="required to successfully load it"):
        resumed(tmp_path / "b", {**saved, "state": unguarded})
    assert marks[1].exists(), "the payload works where nothing guards against it"


def test_the_metadata_of_a_sharded_one(tmp_path: Path) -> None:
    """torch reads it by an unrestricted unpickler."""
    weights = {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.bfloat16)}
    dcp.save({"model": weights, "note": {"step": 3}}, checkpoint_id=tmp_path / "whole", no_dist=True)
    only_safe_loads()
    found = {"model": {name: torch.zeros_like(value) for name, value in weights.items()}}
    dcp.load(found, checkpoint_id=tmp_path / "whole", no_dist=True)
    assert all(torch.equal(found["model"][name], weights[name]) for name in weights)

    (tmp_path / "whole/.metadata").write_bytes(harmful(tmp_path / "ran"))
    with pytest.raises(CheckpointException, match=r"posix\.mkdir has no place in a checkpoint's metadata"):
        dcp.load(found, checkpoint_id=tmp_path / "whole", no_dist=True)
    assert not (tmp_path / "ran").exists()
    harms(harmful(tmp_path / "ran"))
    assert (tmp_path / "ran").exists(), "the payload works where nothing guards against it"


def test_a_value_of_a_sharded_one(tmp_path: Path) -> None:
    dcp.save({"x": Harm(tmp_path / "ran")}, checkpoint_id=tmp_path / "sharded", no_dist=True)
    only_safe_loads()
    with pytest.raises(CheckpointException, match="Weights only load failed"):
        dcp.load({"x": None}, checkpoint_id=tmp_path / "sharded", no_dist=True)
    assert not (tmp_path / "ran").exists()


def test_torchscript_is_refused(tmp_path: Path) -> None:
    """A program in torch's own language, under the suffix of a checkpoint."""
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    with pytest.raises(DataError, match=r"x\.pt: cannot be read"):
        read_state(tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"x\.pt: cannot be read"):
        read_model_state(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["x.tar", "s3://bucket/x.tar.gz", "x.tgz", "x.pt.gz", "x.pt.lz4"])
def test_archives_are_no_load_path(tmp_path: Path, name: str) -> None:
    """Composer unpacks a tar wherever its members say, and a compressed checkpoint beside itself."""
    path = write_yaml(tmp_path, settings(tmp_path / "data", load_path=name))
    with pytest.raises(ConfigError, match=r"load_path: takes a \.pt file"):
        compose(path)
