"""Runs as from a shell: two ranks, kill -9 and relaunch, errors as a user sees them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.distributed import HashStore, distributed_c10d

from lcl_composer import last_word, launched
from lcl_composer.checkpoint import read_model_state
from lcl_composer.data.shared_memory import clean_shared_memory
from lcl_composer.errors import DataError
from lcl_composer.stop_request import Stopped
from tests import runs
from tests.forked import Forked

pytestmark = [pytest.mark.slow, pytest.mark.world_size(2)]

#: A drop-in that makes a run slow enough to be killed in the middle.
SLOW = '''"""Sleep."""

import time

from composer.core import Callback


class Slow(Callback):
    """Sleep at each batch."""

    def __init__(self, seconds: float = 0.5):
        self.seconds = seconds

    def batch_end(self, state, logger):
        time.sleep(self.seconds)
'''


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = [runs.made_up(index) for index in range(34)]
    return runs.write_data(tmp_path_factory.mktemp("data"), documents)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    clean_shared_memory()


def experiment(folder: Path, data: Path) -> Path:
    return runs.write_yaml(folder, runs.settings(data, save_interval="3ba"))


def launch(folder: Path, data: Path, ranks: int, *overrides: str) -> Forked:
    return runs.launch(folder, experiment(folder, data), ranks, *overrides)


@pytest.fixture(scope="module")
def two_ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 20 batches on two ranks, by Composer's launcher; the others are held to it."""
    folder = tmp_path_factory.mktemp("two")
    launcher = [str(Path(sys.executable).parent / "composer"), "-n", "2", str(runs.ROOT / "train.py")]
    code, output = runs.from_the_shell(folder, *launcher, str(experiment(folder, data)))
    assert code == 0, output
    return folder


def latest(folder: Path) -> dict[str, torch.Tensor]:
    return read_model_state(folder / "runs/tiny/checkpoints/latest-rank0.pt")


def test_two_ranks_train_as_one(two_ranks: Path, data: Path, tmp_path: Path):
    """Equal global batches, equal losses, equal weights up to rounding."""
    code, output = launch(tmp_path, data, 1).finish()
    assert code == 0, output
    one, two = runs.read_metrics(tmp_path), runs.read_metrics(two_ranks)
    assert list(one) == list(two) == list(range(1, 21))
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=1e-5, abs=1e-6), f"step {step}"
    expected = latest(tmp_path)
    for name, tensor in latest(two_ranks).items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def wait_for_step(folder: Path, step: int, process: Forked) -> None:
    for _ in range(600):
        assert process.poll() is None, process.output()
        if (folder / "runs/tiny/metrics.jsonl").exists() and max(
            runs.read_metrics(folder), default=0
        ) >= step:
            return
        time.sleep(0.2)
    raise AssertionError(f"no step {step} in two minutes")


def test_kill_9_and_relaunch(two_ranks: Path, data: Path, tmp_path: Path):
    """Ends with the losses and the weights of the run that nobody killed, bit for bit."""
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/slow.py").write_text(SLOW)
    killed = launch(tmp_path, data, 2, "callbacks.slow={}")
    wait_for_step(tmp_path, 7, killed)
    killed.kill()
    assert max(runs.read_metrics(tmp_path)) < 20
    assert (tmp_path / "runs/tiny/checkpoints/ep0-ba6-rank0.pt").exists()
    code, output = launch(tmp_path, data, 2).finish()
    assert code == 0, output
    assert runs.read_metrics(tmp_path) == runs.read_metrics(two_ranks)
    expected = latest(two_ranks)
    assert not [name for name, tensor in latest(tmp_path).items() if not torch.equal(tensor, expected[name])]


def test_kill_9_of_one_rank_is_the_last_line(data: Path, tmp_path: Path):
    """Not the connection that the other one loses."""
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/slow.py").write_text(SLOW)
    job = launch(tmp_path, data, 2, "callbacks.slow={}")
    wait_for_step(tmp_path, 2, job)
    victim = max(child.pid for child in psutil.Process(job.pid).children())
    os.kill(victim, signal.SIGKILL)
    job.finish()
    for _ in range(100):
        if (lines := job.output().splitlines()) and lines[-1].startswith("error: rank"):
            break
        time.sleep(0.1)
    assert f" 1 (process {victim}) w" in lines[-1]  # the launcher here kills the other one at once
    assert "killed from outside" in lines[-1]


@pytest.fixture
def one_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This process as a rank of two nodes, with a store and without a launcher's file system."""
    store = HashStore()
    monkeypatch.setattr(distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(last_word, "begin", lambda: last_word.Rank(tmp_path, 1))
    world = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "NODE_RANK": "1"}
    for name, value in {**world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    before = {number: signal.getsignal(number) for number in launched._SIGNALS}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("raised", "ends", "state"),
    [
        (None, 0, "ended"),
        (DataError("no data"), "error: no data", "failed"),
        (Stopped("tiny stopped by SIGTERM after batch 3", 143), 143, "stopped"),
        (SystemExit(138), 138, "cut short"),
    ],
)
def test_how_a_rank_ends(
    one_rank: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, ends: Any, state: str
):
    def train(path: Path, overrides: list[str]) -> None:
        assert (path, overrides) == (Path("x.yaml"), ["a=1"])
        if raised:
            raise raised

    monkeypatch.setattr("lcl_composer.train.train", train)
    assert launched.run(["x.yaml", "a=1"]) == ends
    (record,) = last_word.read_records(one_rank)
    assert record.state == state
    assert (
        (one_rank / "error.json").exists() == (launched._told() == "rank 1: no data") == (state == "failed")
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("RANK", "5", "RANK 5, WORLD_SIZE 2 and LOCAL_WORLD_SIZE 1 do not fit each other"),
        ("WORLD_SIZE", "two", "WORLD_SIZE is 'two', which is no number"),
        ("NODE_RANK", "x", "NODE_RANK is 'x', which is no number"),
        ("MASTER_ADDR", "", "MASTER_ADDR is not set"),
    ],
)
@pytest.mark.usefixtures("one_rank")
def test_variables_of_a_launcher_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
):
    monkeypatch.setenv(name, value)
    ends = str(launched.run(["x.yaml"]))
    assert ends.startswith(f"error: {says}")
    assert "\n" not in ends


def test_the_first_failure_is_told_to_other_nodes(one_rank: Path):
    assert launched._told() == ""
    launched._tell("rank 3: first")
    launched._tell("rank 2: second")
    assert launched._told() == "rank 3: first"


def errors_in(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error: ")]


def test_batch_size_that_two_ranks_do_not_divide(data: Path, tmp_path: Path):
    code, output = launch(tmp_path, data, 2, "global_train_batch_size=5").finish()
    assert code != 0
    assert "error: command line: global_train_batch_size: 5 documents do not divide over 2 ranks" in output
    assert "Traceback" not in output


def test_errors_without_the_launcher_are_one_line(data: Path, tmp_path: Path):
    path = experiment(tmp_path, data)
    missing = str(tmp_path / "nothing.yaml")
    ended = {
        "lrr": runs.run_alone(tmp_path, path, "optimizer.lrr=1").finish(),
        "nowhere": runs.run_alone(tmp_path, path, "data.train.local=nowhere").finish(),
        "nothing.yaml": runs.from_the_shell(tmp_path, str(runs.ROOT / "train.py"), missing),
    }
    for expected, (code, output) in ended.items():
        assert code == 1, output
        assert len(errors_in(output)) == 1, output
        assert expected in output
        assert "Traceback" not in output
