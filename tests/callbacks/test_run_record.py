from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from lcl_composer.callbacks.run_record import RunRecord, folder_of
from lcl_composer.report.environment import git_state
from tests.callbacks.training import make_trainer


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "model.py").write_text("width = 1\n")
    (folder / ".gitignore").write_text("runs/\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def test_the_record_is_there_before_the_first_batch(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny"
    trainer = make_trainer([RunRecord(folder, "seed: 17\n")])
    assert not folder.exists(), "a launch that finds the run finished is none"
    trainer.fit()
    assert (folder / "config.yaml").read_text() == "seed: 17\n"
    facts = json.loads((folder / "environment.json").read_text())
    assert facts["packages"]["mosaicml"]
    assert facts["world_size"] == 1
    assert facts["python"].startswith("3.")
    assert folder_of(trainer.state) == folder


def test_a_later_launch_moves_the_record_it_finds(tmp_path: Path) -> None:
    def launch(seed: int) -> None:
        record = RunRecord(tmp_path, f"seed: {seed}\n")
        record.fit_start(SimpleNamespace(), SimpleNamespace(destinations=()))  # type: ignore[arg-type]

    for seed in (1, 2, 3):
        launch(seed)
    assert (tmp_path / "config.yaml").read_text() == "seed: 3\n"
    assert (tmp_path / "launches/1/config.yaml").read_text() == "seed: 1\n"
    assert (tmp_path / "launches/2/config.yaml").read_text() == "seed: 2\n"
    assert (tmp_path / "launches/2/environment.json").exists()
    shutil.rmtree(tmp_path / "launches/1")  # tidied up
    launch(4)
    assert (tmp_path / "launches/2/config.yaml").read_text() == "seed: 2\n"
    assert (tmp_path / "launches/3/config.yaml").read_text() == "seed: 3\n"


def test_run_folder_without_a_record() -> None:
    assert folder_of(SimpleNamespace(callbacks=[], run_name="x")) == Path("runs/x")  # type: ignore[arg-type]


def test_a_clean_repository_has_no_patch(repository: Path) -> None:
    state, patch = git_state(repository)
    assert state is not None
    assert len(state["commit"]) == 40
    assert not state["dirty"]
    assert patch == ""


def test_the_patch_brings_back_changes_and_new_files(repository: Path, tmp_path: Path) -> None:
    (repository / "model.py").write_text("width = 2\n")
    (repository / "callbacks").mkdir()
    (repository / "callbacks/mine.py").write_text("print('a drop-in, not committed')\n")
    (repository / "runs").mkdir()
    (repository / "runs/metrics.jsonl").write_text("{}\n")
    state, patch = git_state(repository / "callbacks")  # from below the top
    assert state is not None
    assert state["dirty"]
    assert state["untracked"] == ["callbacks/mine.py"]
    git(tmp_path, "clone", "-q", str(repository), "clone")
    (tmp_path / "code.patch").write_text(patch)
    git(tmp_path / "clone", "apply", str(tmp_path / "code.patch"))
    assert (tmp_path / "clone/model.py").read_text() == "width = 2\n"
    assert (tmp_path / "clone/callbacks/mine.py").exists()


def test_outside_a_repository(tmp_path: Path) -> None:
    assert git_state(tmp_path) == (None, "")
