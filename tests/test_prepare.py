"""What a run lacks is made once, however many runs want it at the same time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lcl_composer import prepare as module
from lcl_composer.config.compose import compose
from lcl_composer.prepare import prepare
from tests.runs import settings, write_yaml


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A run whose documents, tokenizer and probe are to be made."""
    data = tmp_path / "data"
    generate = {"name": "shapes", "documents": 40, "split": "train"}
    probe = {"train": str(data / "probe/train"), "val": str(data / "probe/val")}
    values = settings(data, evaluation={"probe": probe})
    values["data"]["train"]["generate"] = generate
    return compose(write_yaml(tmp_path, values)).run


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).parts[0] for p in folder.rglob("*") if p.is_file()}


def test_runs_that_start_together_make_each_thing_once(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = []

    def slowly(name: str) -> Any:
        original, busy = getattr(module, name), threading.Lock()

        def make(*arguments: Any) -> None:
            assert busy.acquire(blocking=False), f"two at once in {name}"
            time.sleep(0.2)
            original(*arguments)
            made.append(name)
            busy.release()

        return make

    for name in ("generate_documents", "train_bpe"):
        monkeypatch.setattr(module, name, slowly(name))
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(prepare, run) for _ in range(2)]:
            future.result()
    assert sorted(made) == ["generate_documents", "generate_documents", "train_bpe"]  # it looks for itself
    left = files(tmp_path / "data")
    assert {"train", "tokenizer.json", "probe"} <= left
    assert not [name for name in left if name.endswith(".partial")]
    assert len(list((tmp_path / "data/probe/val").iterdir())) == 48


def test_what_is_there_is_left_alone(run: Any, tmp_path: Path):
    prepare(run)
    paths = [tmp_path / "data" / name for name in ("tokenizer.json", "probe", "train/index.json")]
    before = [path.stat().st_mtime_ns for path in paths]
    prepare(run)
    assert [path.stat().st_mtime_ns for path in paths] == before
