"""A conversion that is killed goes on and ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from lcl_composer.cli import app
from lcl_composer.convert.engine import convert
from lcl_composer.convert.img2dataset import Img2Dataset
from lcl_composer.convert.source import Source
from tests.convert.samples import content
from tests.convert.tars import write_folder

#: What Python reports before it touches the file system (PEP 578).
EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}
SETTINGS = {"held_out": 0.4, "shard_size": 6000, "progress": False, "workers": 1}


class Conversion:
    """A small conversion, locally or through a remote that is a local path."""

    def __init__(self, source: Source, tmp_path: Path, remote: bool) -> None:
        self.source = source
        self.folder = tmp_path
        self.out = tmp_path / "out"
        self.work = {"work": tmp_path / "work"} if remote else {}

    def run(self) -> None:
        convert(self.source, str(self.out), **SETTINGS, **self.work)

    def run_until(self, stop: int) -> int:
        """Run in a child that kills itself at event ``stop``; return the events it got to, or 0 if killed."""
        pid = os.fork()
        if pid == 0:
            events = 0

            def count(event: str, arguments: tuple) -> None:
                nonlocal events
                if event in EVENTS and str(arguments[0]).startswith(str(self.folder)):
                    events += 1
                    if events == stop:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            self.run()
            (self.folder.parent / "events").write_text(str(events))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
        return int((self.folder.parent / "events").read_text()) if status == 0 else 0

    def finished(self) -> bool:
        """Whether all is in its place and the work forgotten, so that there is nothing to take up again."""
        done = (self.out / "index.json").exists() or (self.out / "train/index.json").exists()
        return done and not (self.work.get("work", self.out) / ".convert").exists()

    def leftovers(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name != "out")


@pytest.fixture
def source(tmp_path) -> Img2Dataset:
    return Img2Dataset(write_folder(tmp_path / "laion", 3, 5))


@pytest.fixture
def whole(source, tmp_path) -> dict[str, bytes]:
    convert(source, str(tmp_path / "whole"), **SETTINGS)
    return content(tmp_path / "whole")


def test_what_is_compared(whole):
    assert sum(name.endswith(".mds.zstd") for name in whole) >= 6
    assert {"conversion.json", "failures.jsonl", "train/index.json", "held_out/index.json"} <= set(whole)


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_killed_at_any_step(source, whole, tmp_path, remote):
    (tmp_path / "events_of").mkdir()
    steps = Conversion(source, tmp_path / "events_of", remote).run_until(-1)
    assert steps > 100
    for stop in range(1, steps + 1, 5 if remote else 3):
        folder = tmp_path / f"{stop}"
        folder.mkdir()
        conversion = Conversion(source, folder, remote)
        assert conversion.run_until(stop) == 0, "was not killed"
        if not conversion.finished():
            conversion.run()
            assert not conversion.leftovers()
        assert content(conversion.out) == whole, f"killed at {stop} of {steps}"


def test_killed_again_and_again(source, whole, tmp_path):
    (tmp_path / "again").mkdir()
    conversion = Conversion(source, tmp_path / "again", remote=False)
    stop = kills = 0
    while not conversion.out.exists():
        stop += 9
        kills += conversion.run_until(stop) == 0
    if not conversion.finished():
        conversion.run_until(-1)
    assert kills > 5
    assert content(conversion.out) == whole


@pytest.mark.slow
def test_the_command_killed_with_its_workers_at_work(tmp_path):
    source = write_folder(tmp_path / "laion", 20, 100)
    convert(Img2Dataset(source), str(tmp_path / "whole"), progress=False, workers=1)
    command = [
        "convert",
        "img2dataset",
        str(source),
        str(tmp_path / "out"),
        "--workers",
        "2",
        "--no-progress",
    ]
    lcl = [sys.executable, "-c", "from lcl_composer.cli import app; app()", *command]
    process = subprocess.Popen(lcl)
    records = tmp_path / "out.partial/.convert/parts"
    while process.poll() is None and len(list(records.glob("*.json"))) < 4:
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert gone
    assert not alive, "workers outlive the command"
    done = len(list(records.glob("?????.json")))
    assert 4 <= done < 20
    assert CliRunner().invoke(app, command).exit_code == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")
