"""Checkpoints are data: code in them is refused, and damage is told in a line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lcl_composer.checkpoint import misfit, only_safe_loads, read_model_state
from lcl_composer.errors import DataError


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``only_safe_loads`` sets a variable of the process; put it back."""
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    yield
    os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD", None)


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("function", [os.system, os.mkdir, eval], ids=lambda f: f.__name__)
def test_code_is_refused_and_not_run(tmp_path: Path, function: Callable[..., Any]):
    trace = tmp_path / "executed"
    argument = {os.system: f"touch {trace}", os.mkdir: str(trace)}.get(function, f"open({str(trace)!r}, 'w')")
    path = tmp_path / "evil.pt"
    torch.save({"state": {"model": {"w": torch.zeros(2)}, "callbacks": Payload(function, argument)}}, path)
    with pytest.raises(DataError, match=r"evil\.pt: cannot be read, it is truncated or holds code"):
        read_model_state(path)
    assert not trace.exists()
    only_safe_loads()  # and as Composer loads it, which asks for weights_only=False
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(path, weights_only=False)
    assert not trace.exists()
    os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    torch.load(path, weights_only=False)
    assert trace.exists(), "the payload works where nothing guards against it"


def test_what_a_composer_checkpoint_holds_besides_tensors_is_let_through(tmp_path: Path):
    """Without this, resuming would need the guard off."""
    only_safe_loads()
    state = np.random.RandomState(3).get_state()
    torch.save({"rng": {"numpy": state, "scalar": np.float64(2.5)}}, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=False)
    assert np.array_equal(loaded["rng"]["numpy"][1], state[1])
    assert loaded["rng"]["scalar"] == 2.5


def test_read_model_state_takes_wrappers_off_the_names(tmp_path: Path):
    weight = torch.arange(3.0)
    names = ["module.encoder.w", "_orig_mod.pooler.w", "module._orig_mod.head.w", "encoder.module.w"]
    torch.save({"state": {"model": dict.fromkeys(names, weight)}}, tmp_path / "x.pt")
    state = read_model_state(tmp_path / "x.pt")
    assert set(state) == {"encoder.w", "pooler.w", "head.w", "encoder.module.w"}
    assert all(torch.equal(tensor, weight) for tensor in state.values())


def test_truncated_file(tmp_path: Path):
    path = tmp_path / "cut.pt"
    torch.save({"state": {"model": {"w": torch.zeros(1000)}}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cut\.pt: cannot be read, it is truncated") as caught:
        read_model_state(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all"])
def test_other_files(tmp_path: Path, content: bytes):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.pt"):
        read_model_state(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [{"weights": torch.zeros(2)}, torch.zeros(2), {"state": {"model": 3}}])
def test_not_a_composer_checkpoint(tmp_path: Path, content: Any):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"x\.pt: not a Composer checkpoint"):
        read_model_state(tmp_path / "x.pt")


def test_misfit_names_the_first_difference(tmp_path: Path):
    model = torch.nn.Linear(3, 2)
    path = tmp_path / "x.pt"
    torch.save({"state": {"model": {f"module.{k}": v for k, v in model.state_dict().items()}}}, path)
    assert misfit(path, model) == ""
    expected = r"x\.pt: another architecture, 1 tensors differ \('weight' is \[2, 3\] there and \[2, 4\] in"
    assert re.search(expected, misfit(path, torch.nn.Linear(4, 2)))
    assert "'bias' is [2] there and absent in this model" in misfit(path, torch.nn.Linear(3, 2, bias=False))


def test_missing_file(tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere\.pt: no such file"):
        read_model_state(tmp_path / "nowhere.pt")


def test_what_is_named_in_place_of_a_checkpoint(tmp_path: Path):
    with pytest.raises(DataError, match=r"is a folder; name a checkpoint in it$"):
        read_model_state(tmp_path)
    newest = tmp_path / "run/checkpoints/ep0-ba4-rank0.pt"
    newest.parent.mkdir(parents=True)
    newest.touch()
    for folder in (tmp_path / "run", newest.parent):
        with pytest.raises(DataError, match=rf"is a folder; name a checkpoint in it, such as {newest}"):
            read_model_state(folder)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(
        DataError, match=r"model\.safetensors: holds weights alone .* to train on from it set"
    ):
        read_model_state(tmp_path / "model.safetensors")
