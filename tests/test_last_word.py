"""Who was first, and the line that says so after all others; with processes that do nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lcl_composer import last_word
from lcl_composer.last_word import (
    CUT_SHORT,
    ENDED,
    FAILED,
    FOLLOWED,
    RUNNING,
    STOPPED,
    Rank,
    Record,
    Watch,
    birth_of,
    cause_of,
    read_records,
)

ROOT = Path(__file__).resolve().parents[1]

#: Two ranks: 1 is killed, 0 loses its connection; then the launcher prints a line of its own.
LAUNCHER = '''
import os, subprocess, sys
rank = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from lcl_composer import last_word
me = last_word.begin()
while len(last_word.read_records(me.folder)) < 2:
    time.sleep(0.02)
if me.rank:
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
while not (cause := me.cause_elsewhere()):
    time.sleep(0.02)
me.note(last_word.FOLLOWED, cause)
"""
ranks = [
    subprocess.Popen(
        [sys.executable, "-S", "-c", rank, sys.argv[1]], env=os.environ | {"RANK": n, "LOCAL_RANK": n}
    )
    for n in "01"
]
codes = [r.wait() for r in ranks]
print("launcher:", codes, flush=True)
'''


def record(rank: int, state: str, at: float = 0.0) -> Record:
    return Record(rank, 100 + rank, "1", state, "" if state == RUNNING else f"text of {rank}", at)


@pytest.mark.parametrize(
    ("records", "gone", "expected"),
    [
        ([record(0, ENDED), record(1, ENDED)], {}, ""),
        ([record(0, FAILED, 5), record(1, FAILED, 4)], {}, "error: rank 1: text of 1"),
        ([record(0, FOLLOWED, 1), record(1, FAILED, 4)], {}, "error: rank 1: text of 1"),
        ([record(0, FAILED, 5), record(1, RUNNING)], {1: 4.0}, "error: rank 1 (process 101) was killed"),
        ([record(0, FAILED, 3), record(1, RUNNING)], {1: 34.0}, "error: rank 0: text of 0"),
        ([record(0, CUT_SHORT, 1), record(1, RUNNING)], {1: 2.0}, "error: rank 1 (process 101) was killed"),
        (
            [record(0, RUNNING), record(1, RUNNING)],
            {0: 2.0, 1: 2.0},
            "error: ranks 0 (process 100) and 1 (process 101) were, in one moment, killed",
        ),
        (
            [record(0, RUNNING), record(1, RUNNING)],
            {0: 3.0, 1: 2.0},
            "error: rank 1 (process 101) was killed",
        ),
        ([record(0, STOPPED, 9), record(1, STOPPED, 8)], {}, "text of 1"),
        ([record(0, FOLLOWED, 2), record(1, CUT_SHORT, 1)], {}, "error: text of 0"),
        ([record(0, CUT_SHORT, 2)], {}, "error: text of 0"),
    ],
)
def test_the_first_failure_counts(records: list[Record], gone: dict[int, float], expected: str):
    found = cause_of(records, gone)
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


def test_a_rank_reads_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    me = Rank(tmp_path, 0)
    assert me.cause_elsewhere() == ""
    other = Rank(tmp_path, 1)
    assert me.cause_elsewhere() == ""  # it runs: this process
    other.note(FAILED, "no\ndata")
    assert me.cause_elsewhere() == "rank 1: no data"
    assert other.cause_elsewhere() == ""
    (tmp_path / "rank2.json").write_text("{")  # of a full disk
    assert [record.rank for record in read_records(tmp_path)] == [0, 1]


def test_a_rank_that_was_asked_to_stop_was_not_killed_from_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(last_word, "_rank", Rank(tmp_path, 0))
    last_word.heard("SIGTERM")
    (asked,) = read_records(tmp_path)
    assert asked.state == RUNNING
    assert cause_of([asked], {}) == ""
    line = cause_of([asked, record(1, FOLLOWED, 9.0)], {0: 5.0})
    assert line.startswith("error: ended by SIGTERM before its checkpoint was written")
    both = cause_of([asked, record(1, RUNNING)], {0: 5.0, 1: 5.0})
    assert "killed from outside" in both, "nobody had asked the other"
    rank = Rank(tmp_path, 0)
    rank.pid += 1  # as in a process that a rank has forked
    monkeypatch.setattr(last_word, "_rank", rank)
    last_word.heard("SIGTERM")
    assert not read_records(tmp_path)[0].text


def test_a_dead_process_has_no_birth():
    process = subprocess.Popen(["true"])
    time.sleep(0.2)
    assert birth_of(process.pid) == ""  # a zombie
    process.wait()
    assert birth_of(process.pid) == ""
    assert birth_of(os.getpid())


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen]]:
    processes = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def note_running(folder: Path, rank: int, pid: int) -> None:
    Rank(folder, rank)
    path = folder / f"rank{rank}.json"
    text = path.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {pid}')
    path.write_text(text.replace(f'"{birth_of(os.getpid())}"', f'"{birth_of(pid)}"'))


def test_ranks_without_a_launcher_are_ended(tmp_path: Path, sleepers: list[subprocess.Popen]):
    launcher, *ranks = sleepers
    for number, rank in enumerate(ranks):
        note_running(tmp_path, number, rank.pid)
    born = birth_of(launcher.pid)
    launcher.kill()
    said: list[str] = []
    Watch(tmp_path, (launcher.pid, born), patience=0.3, say=said.append).run()
    assert [rank.wait(1) for rank in ranks] == [-signal.SIGKILL] * 2
    assert said == [
        f"error: the launcher (process {launcher.pid}) is gone and its ranks did not end within 0.3 s: they "
        "hung, and were killed"
    ]


def test_a_launcher_that_lingers_is_not_waited_for(tmp_path: Path, sleepers: list[subprocess.Popen]):
    launcher, rank, _ = sleepers
    note_running(tmp_path, 0, rank.pid)
    rank.kill()
    rank.wait()
    said: list[str] = []
    Watch(tmp_path, (launcher.pid, birth_of(launcher.pid)), 9, said.append, linger=0.3).run()
    assert said[0].startswith(f"error: rank 0 (process {rank.pid}) was killed")
    assert launcher.poll() is None


def test_a_rank_that_is_started_again_is_not_gone(tmp_path: Path, sleepers: list[subprocess.Popen]):
    _, first, second = sleepers
    watch = Watch(tmp_path, (os.getpid(), birth_of(os.getpid())), patience=1, say=print)
    note_running(tmp_path, 0, first.pid)
    watch.look()
    first.kill()
    first.wait()
    watch.look()
    assert list(watch.gone) == [0]
    note_running(tmp_path, 0, second.pid)
    watch.look()
    assert not watch.gone


def test_the_cause_is_the_last_line(tmp_path: Path):
    """Whatever the launcher still prints, and with nothing left behind."""
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-S", str(tmp_path / "launcher.py"), str(ROOT)],
        env=environment | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    lines = done.stdout.splitlines()
    assert lines[-2] == "launcher: [0, -9]"
    assert lines[-1].startswith("error: rank 1 (process ")
    assert "was killed from outside" in lines[-1]
    assert not list(tmp_path.glob("lcl-*"))
