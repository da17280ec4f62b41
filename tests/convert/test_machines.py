"""What differs between machines is found, and named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lcl_composer.convert.machines import Home
from lcl_composer.convert.mmc4 import MMC4
from lcl_composer.convert.worker import Job
from lcl_composer.errors import DataError


@pytest.fixture
def job(tmp_path) -> Job:
    for name in ("mmc4/docs_shard_0_v2.jsonl", "images/00/a.jpg", "images/00/b.jpg", "tokenizer.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    source = MMC4(tmp_path / "mmc4", images=tmp_path / "images", tokenizer=str(tmp_path / "tokenizer.json"))
    return Job(source, tmp_path / "out.partial", None, 0.0, 1 << 26)


@pytest.fixture
def home(job) -> Home:
    token = job.root / ".convert/tmp/run-1"
    token.mkdir(parents=True)
    return Home.here(job, token)


def test_the_same_machine_is_the_same(home):
    home.check()
    assert home.start is None
    assert len(home.seen) == 7  # three folders on the way, their three files, the tokenizer


@pytest.mark.parametrize("what", ["mmc4", "images", "images/00", "images/00/b.jpg", "tokenizer.json"])
def test_what_is_not_there(home, tmp_path, what):
    path = tmp_path / what
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=f"does not see {path} as the machine that began.*all machines share"):
        home.check()


def test_a_mount_point_without_a_mount_and_another_file(home, tmp_path):
    shutil.rmtree(tmp_path / "images/00")
    with pytest.raises(DataError, match=r"does not see .*images/00 "):
        home.check()


def test_another_file_of_the_name(home, tmp_path):
    (tmp_path / "tokenizer.json").write_text("other")
    with pytest.raises(DataError, match=r"does not see .*tokenizer.json"):
        home.check()


def test_a_work_folder_of_the_same_name(home, job):
    home.token.rmdir()
    with pytest.raises(DataError, match=f"does not see {job.root} "):
        home.check()


@pytest.mark.parametrize("name", ["pillow", "python", "lcl-composer", "ftfy"])
def test_other_versions(home, monkeypatch, name):
    here = "lcl_composer.convert.machines"
    monkeypatch.setattr(f"{here}.package_versions", lambda: {**home.versions, name: "0.1"})
    with pytest.raises(DataError, match=rf"has {name} 0.1, the machine that began .* {home.versions[name]};"):
        home.check()


def test_other_code_of_the_same_version(home, monkeypatch):
    monkeypatch.setattr("lcl_composer.convert.machines.source_digest", lambda *_: "abc")
    with pytest.raises(DataError, match="has code of lcl-composer abc, "):
        home.check()


def test_relative_paths_start_where_the_command_was_given(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    token = Path("out.partial/.convert/tmp/run-1")
    token.mkdir(parents=True)
    home = Home.here(Job(MMC4(Path("mmc4")), Path("out.partial"), None, 0.0, 1 << 26), token)
    monkeypatch.chdir("/")
    with home.entered():
        assert Path.cwd() == tmp_path
        home.check()
    assert os.getcwd() == "/"
    shutil.rmtree(tmp_path)
    with pytest.raises(DataError, match=f"does not see {tmp_path} "), home.entered():
        pass
