"""SIGTERM and SIGUSR1: the batch is finished and a checkpoint written ."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from benchmarks.jobs import Job, stitch, write_experiment
from lcl_composer.checkpoint import read_model_state
from lcl_composer.data.loader import _begin_worker, _leave_end_to_parent
from lcl_composer.stop_request import LAUNCHER_GONE, Stopped, StopRequest
from lcl_composer.train import train
from tests import runs

KILL = '''"""Send a signal to this process."""

import os

from composer.core import Callback


class KillMe(Callback):
    """Ask this process to stop in a batch."""

    def __init__(self, batch: int, number: int):
        self.batch, self.number = batch, number

    def after_backward(self, state, logger):
        if int(state.timestamp.batch) + 1 == self.batch:
            os.kill(os.getpid(), self.number)
'''


def test_signals_are_noted_only_while_it_listens():
    before = signal.getsignal(signal.SIGUSR1)
    request = StopRequest()
    request.listen()
    assert request.received == 0
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)  # a launcher forwards what the whole group has got already
    assert request.received == signal.SIGUSR1
    request.ignore()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_it_says_what_it_heard():
    heard: list[str] = []
    request = StopRequest(heard=heard.append)
    request.listen()
    try:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # as the launcher sends it then
    finally:
        request.ignore()
    assert heard == ["SIGTERM", "SIGINT", "SIGINT"]


def test_a_launcher_that_is_gone_is_a_request(monkeypatch: pytest.MonkeyPatch):
    request, alone = StopRequest(os.getppid()), StopRequest()
    assert request.received == 0
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert request.received == LAUNCHER_GONE
    assert alone.received == 0  # a shell that left its background job behind


def test_a_second_interrupt_ends_at_once():
    request = StopRequest()
    request.listen()
    try:
        os.kill(os.getpid(), signal.SIGTERM)  # of a launcher that the terminal interrupts too
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        request.ignore()


def _sleep() -> None:
    _leave_end_to_parent(0)
    time.sleep(60)


def _terminate(number: int) -> None:
    os.kill(number, signal.SIGTERM)


def test_a_worker_ends_by_its_parents_sigterm_alone():
    context = get_context("fork")
    worker = context.Process(target=_sleep)
    worker.start()
    time.sleep(0.5)
    stranger = context.Process(target=_terminate, args=(worker.pid,))
    stranger.start()
    stranger.join()
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0


class Unsendable:
    """What the queue's thread cannot pickle."""

    def __init__(self, message: str):
        self.message = message

    def __reduce__(self) -> Any:
        raise RuntimeError(self.message)


def _hand_over(message: str) -> None:
    _begin_worker(0)
    queue = get_context("fork").Queue()
    queue.put(Unsendable(message))
    time.sleep(60)


@pytest.mark.parametrize(
    ("message", "code"),
    [("unable to write to file </torch_1_2>: No space left on device (28)", errno.ENOSPC), ("else", 1)],
)
def test_a_worker_ends_when_its_batch_is_lost(message: str, code: int):
    """Python would go on without it, and the training process would wait for ever."""
    worker = get_context("fork").Process(target=_hand_over, args=(message,))
    worker.start()
    worker.join(20)
    assert worker.exitcode == code


@pytest.mark.slow
def test_a_checkpoint_is_written_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No checkpoint is due at batch 3; the run of two launches ends with the weights of the run of one."""
    data = runs.write_data(tmp_path / "data", [runs.made_up(index) for index in range(34)])
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/kill_me.py").write_text(KILL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    path = runs.write_yaml(tmp_path, runs.settings(data, max_duration="6ba", save_interval="5ba"))
    train(path, ["run_name=whole"])
    with pytest.raises(Stopped, match="tiny stopped by SIGUSR1 after batch 3") as stopped:
        train(path, [f"callbacks.kill_me={{batch: 3, number: {int(signal.SIGUSR1)}}}"])
    assert stopped.value.exit_code == 128 + signal.SIGUSR1
    place = tmp_path / "runs/tiny/checkpoints"
    assert [file.name for file in place.glob("ep*.pt")] == ["ep0-ba3-rank0.pt"]
    train(path, [])
    assert runs.read_metrics(tmp_path) == runs.read_metrics(tmp_path, "whole")
    one, other = (
        read_model_state(tmp_path / f"runs/{n}/checkpoints/latest-rank0.pt") for n in ("tiny", "whole")
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


#: Seconds that a batch is stretched to, and no checkpoint before the end.
SLOW = ("callbacks.record_batches.pause=0.3", "save_interval=1ep", "max_duration=5ba")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    started: list[Job] = []
    yield started
    for job in started:
        job.kill()


def wait_for_batch(job: Job, number: int) -> list[psutil.Process]:
    """Wait until the first rank has begun a batch; returns the ranks."""
    note = job.notes / f"0of{job.ranks}.jsonl"
    for _ in range(1800):
        if note.exists() and note.read_text().count("\n") > number:
            return psutil.Process(job.processes[0].pid).children()
        assert job.processes[0].is_alive(), log_of(job)
        time.sleep(0.1)
    raise AssertionError(f"no batch {number} in three minutes: {log_of(job)}")


def log_of(job: Job) -> str:
    return (job.notes / "node0.log").read_text()


def newest(folder: Path) -> str:
    return (folder / "runs/tiny/checkpoints/latest-rank0.pt").resolve().name


@pytest.mark.slow
@pytest.mark.world_size(2)
def test_sigterm_to_all_processes_loses_no_batch(experiment: Path, tmp_path: Path, jobs: list[Job]):
    """As Slurm sends it: to launcher, ranks and loader workers at once, far from a checkpoint."""
    jobs.append(Job(experiment, tmp_path, 2, *SLOW, "data.train.num_workers=1"))
    ranks = wait_for_batch(jobs[0], 1)
    os.killpg(jobs[0].processes[0].pid or 0, signal.SIGTERM)
    psutil.wait_procs(ranks, timeout=60)
    batches, _ = stitch(tmp_path)
    assert "tiny stopped by SIGTERM after batch" in log_of(jobs[0])
    assert newest(tmp_path) == f"ep0-ba{len(batches)}-rank0.pt"
    jobs.append(Job(experiment, tmp_path, 2, *SLOW[1:]))
    jobs[1].wait()
    batches, different = stitch(tmp_path)
    assert sorted(batches) == list(range(5))
    assert not different
    assert sorted(runs.read_metrics(tmp_path)) == [1, 2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.world_size(2)
def test_two_launches_of_one_name_and_a_launcher_that_dies(experiment: Path, tmp_path: Path, jobs: list[Job]):
    """The second launch is refused on both ranks; ranks without a launcher end behind a checkpoint."""
    jobs.append(Job(experiment, tmp_path, 2, *SLOW))
    ranks = wait_for_batch(jobs[0], 0)
    for rank in ranks:
        rank.suspend()  # or the first would be done before the second begins, on a busy machine
    jobs.append(Job(experiment, tmp_path, 2, *SLOW))
    jobs[1].processes[0].join(180)
    assert f"is in use by another launch (process {ranks[0].pid} on " in log_of(jobs[1])
    os.kill(jobs[0].processes[0].pid or 0, signal.SIGUSR1)
    for rank in ranks:
        rank.resume()
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive
    assert newest(tmp_path) == f"ep0-ba{len(stitch(tmp_path)[0])}-rank0.pt"
    assert "tiny stopped by the end of its launcher after batch" in log_of(jobs[0])
