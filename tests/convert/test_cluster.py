"""Conversion by the workers of a scheduler: the same bytes, whoever dies; and what is refused."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import types
from contextlib import contextmanager
from pathlib import Path

import dask
import psutil
import pytest
from distributed import Client
from typer.testing import CliRunner

from lcl_composer.cli import app
from lcl_composer.convert.engine import convert
from lcl_composer.convert.progress import Progress
from lcl_composer.errors import ConfigError, DataError
from tests.convert.dask_processes import Deadly, cluster, run_worker
from tests.convert.samples import content
from tests.convert.tars import write_folder
from tests.forked import Forked

SETTINGS = {"held_out": 0.4, "shard_size": 6000, "progress": False}


@pytest.fixture
def source(tmp_path) -> Deadly:
    return Deadly(write_folder(tmp_path / "laion", 8, 5))


@pytest.fixture
def whole(source, tmp_path) -> dict[str, bytes]:
    convert(source, str(tmp_path / "whole"), workers=1, **SETTINGS)
    return content(tmp_path / "whole")


@pytest.fixture
def deaths(tmp_path, monkeypatch) -> Path:
    """Workers that start from now on die at a record of the fourth tar, once."""
    folder = tmp_path / "deaths"
    folder.mkdir()
    monkeypatch.setenv("KILL_AT", "00003/003002")
    monkeypatch.setenv("KILL_COUNT", "1")
    monkeypatch.setenv("KILL_MARKS", str(folder))
    return folder


def records(out: Path) -> list[str]:
    return sorted(p.stem for p in out.with_name(out.name + ".partial").glob(".convert/parts/?????.json"))


def test_a_worker_killed_in_the_middle_changes_no_byte(source, whole, deaths, tmp_path):
    out = tmp_path / "out"
    with cluster(tmp_path / "cluster") as scheduler:
        report = convert(source, str(out), cluster=scheduler, **SETTINGS)
    assert len(list(deaths.iterdir())) == 1, "no worker died"
    assert report.documents == 32
    assert content(out) == whole
    assert not (tmp_path / "out.partial").exists()


def test_a_part_that_kills_every_worker_is_named_and_all_else_is_done(
    source, whole, deaths, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setenv("KILL_COUNT", "9")
    with (
        cluster(tmp_path / "cluster", workers=3, allowed_failures=0) as scheduler,
        pytest.raises(DataError, match=r"^00003.tar: every worker that converted it died"),
    ):
        convert(source, str(out), cluster=scheduler, **SETTINGS)
    assert records(out) == [f"{i:05d}" for i in range(8) if i != 3]
    assert len(list(deaths.iterdir())) == 2, "it was not tried alone"
    monkeypatch.delenv("KILL_AT")
    convert(source, str(out), workers=1, **SETTINGS)
    assert content(out) == whole


@contextmanager
def as_in_a_new_process():
    """Ctrl-C means what it does in one; a Trainer of an earlier test leaves a handler behind."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_takes_back_what_waits(source, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setenv("SLOW", "0.05")
    with cluster(tmp_path / "cluster") as scheduler, Client(scheduler_file=scheduler) as client:
        with monkeypatch.context() as patch, as_in_a_new_process():
            patch.setattr(Progress, "count_part", lambda self: os.kill(os.getpid(), 2))
            with pytest.raises(KeyboardInterrupt):
                convert(source, str(out), cluster=scheduler, **SETTINGS)
        while any(client.processing().values()):
            time.sleep(0.02)
        assert 1 <= len(records(out)) < 5
        monkeypatch.delenv("SLOW")
        convert(source, str(out), cluster=scheduler, **SETTINGS)
    assert content(out) == whole


def test_a_scheduler_that_dies_is_one_line_and_a_restart_goes_on(source, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setenv("SLOW", "0.05")
    with (
        cluster(tmp_path / "cluster") as scheduler,
        monkeypatch.context() as patch,
        dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}),
    ):
        patch.setattr(Progress, "count_part", lambda self: kill_scheduler(scheduler))
        with pytest.raises(DataError, match=r"scheduler.json: lost the scheduler; start again to continue"):
            convert(source, str(out), cluster=scheduler, **SETTINGS)
    assert 1 <= len(records(out)) < 8
    monkeypatch.delenv("SLOW")
    convert(source, str(out), workers=1, **SETTINGS)
    assert content(out) == whole


def kill_scheduler(file: str) -> None:
    """End the process that listens on the scheduler's port."""
    port = int(json.loads(Path(file).read_text())["address"].rpartition(":")[2])
    for connection in psutil.net_connections("tcp4"):
        if connection.laddr.port == port and connection.status == psutil.CONN_LISTEN and connection.pid:
            os.kill(connection.pid, signal.SIGKILL)


def test_paths_may_be_relative_to_where_the_command_is_given(source, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with cluster(tmp_path / "cluster", workers=1) as scheduler:
        Path("elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        convert(Deadly(Path("../laion")), "../out", cluster=scheduler, **SETTINGS)
    told = {"conversion.json"}  # which names the source as it was given
    assert {k: v for k, v in content(tmp_path / "out").items() if k not in told} == {
        k: v for k, v in whole.items() if k not in told
    }


def test_workers_that_lack_a_module_are_one_line(source, tmp_path, monkeypatch):
    newer = types.ModuleType("newer_lcl_composer")
    newer.Deadly = type("Deadly", (Deadly,), {"__module__": newer.__name__})
    monkeypatch.setitem(sys.modules, newer.__name__, newer)
    with (
        cluster(tmp_path / "cluster", workers=1) as scheduler,
        pytest.raises(
            DataError, match=r"cannot run the conversion \(.*install the same lcl-composer"
        ) as caught,
    ):
        convert(newer.Deadly(source.source), str(tmp_path / "out"), cluster=scheduler, **SETTINGS)
    assert "\n" not in str(caught.value)


def test_a_worker_of_many_threads_is_refused(source, tmp_path):
    with (
        cluster(tmp_path / "cluster", workers=1, threads=4) as scheduler,
        pytest.raises(DataError, match=r"has 4 threads.*--nthreads 1 --nworkers 4"),
    ):
        convert(source, str(tmp_path / "out"), cluster=scheduler, **SETTINGS)


def test_the_command_and_a_worker_that_comes_late(source, tmp_path, capfd):
    convert(source, str(tmp_path / "whole"), workers=1)
    with cluster(tmp_path / "cluster", workers=0) as scheduler:
        worker = Forked(tmp_path, run_worker, scheduler, 1)
        command = [
            "convert",
            "img2dataset",
            str(source.source),
            str(tmp_path / "out"),
            "--cluster",
            scheduler,
        ]
        result = CliRunner().invoke(app, command)
        worker.kill()
    assert result.exit_code == 0, result.output
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert "8/8" in result.output


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        ("tcp://127.0.0.1:1", r"no scheduler answers there .*tcp://HOST:8786"),
        ("nowhere at all", "no scheduler answers there"),
        ("missing.json", "no such scheduler file"),
    ],
)
def test_a_scheduler_that_is_not_there(source, tmp_path, scheduler, reason):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}),
        pytest.raises(ConfigError, match=reason),
    ):
        convert(source, str(tmp_path / "out"), cluster=scheduler, **SETTINGS)


def test_without_the_package(source, tmp_path, monkeypatch):
    monkeypatch.setattr("lcl_composer.convert.cluster.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'lcl-composer\[cluster\]'"):
        convert(source, str(tmp_path / "out"), cluster="tcp://127.0.0.1:8786", **SETTINGS)


@pytest.mark.parametrize(("option", "reason"), [("workers", "this machine's"), ("work", "leave --work out")])
def test_options_that_do_not_go_with_it(source, tmp_path, option, reason):
    value = {"workers": 2, "work": tmp_path / "work"}[option]
    with pytest.raises(ConfigError, match=reason):
        convert(source, str(tmp_path / "out"), cluster="tcp://h:1", **SETTINGS, **{option: value})
