"""Traces of a GPU's memory, on a model that lies nowhere: the meta device passes for one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lcl_composer.callbacks.memory_traces import MemorySnapshot, OOMObserver
from lcl_composer.errors import ConfigError
from lcl_composer.registry import callbacks


@pytest.mark.parametrize("made", [MemorySnapshot, OOMObserver])
def test_a_second_launch_writes_where_the_first_one_has(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda *_, **__: None)
    monkeypatch.setattr(torch._C, "_cuda_attach_out_of_memory_observer", lambda _: None, raising=False)
    state: Any = SimpleNamespace(model=torch.nn.Linear(1, 1, device="meta"), run_name="tiny")
    for _ in range(2):
        made().init(state, None)
        (tmp_path / "runs/tiny/memory/rank0.pickle").write_text("x")


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "memory_snapshot", "interval": "0ba"},
        {"name": "memory_snapshot", "interval": "100tok"},
        {"name": "memory_snapshot", "skip_batches": -1},
        {"name": "oom_observer", "max_entries": 0},
    ],
)
def test_what_would_record_nothing_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"must be"):
        callbacks.build(spec)
