"""The proof of exact resume, on a small scale: `benchmarks/resume.py` with few kills."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks import resume
from benchmarks.jobs import Batch

pytestmark = [pytest.mark.slow, pytest.mark.world_size(4)]


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    """The cells of the table that the script prints."""
    command = [sys.executable, resume.__file__, "--kills", "2", "--rows", "kills", "changes", "ends", "nodes"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]


def test_kill_9_and_other_numbers_of_ranks_change_nothing(rows: list[list[str]]):
    assert [row[0] for row in rows[:-1]] == [
        "1 rank, 0 workers",
        "2 ranks, not killed",
        "2 ranks, kill -9 2 times",
        "leftovers in shared memory and lock files",
        "killed, ranks 2 -> 1 -> 4 -> 2",
        "1 rank, killed at epoch ends",
    ]
    assert {row[2] for row in rows[:-1]} == {"as it should be"}


def test_two_nodes_train_on_what_one_does_and_fetch_each_shard_once(rows: list[list[str]]):
    what, found, verdict, _ = rows[-1]
    if found.startswith("left out"):
        pytest.skip("a private /dev/shm for each node needs `unshare -m`, which is not permitted here")
    assert what == "2 nodes of 2 ranks, 2 workers"
    assert verdict == "as it should be"
    assert "files fetched" in found


def whole(*documents: str, epoch: int = 0, loss: str = "0x1p0") -> Batch:
    return Batch(epoch, [(name, "tokens", "pixels") for name in documents], [{"total": loss}])


def test_differences_are_found():
    """So that a table without problems means something."""
    reference = {0: whole("a", "b"), 1: whole("c", "d")}
    assert resume.differences(reference, reference, 2) == []
    assert resume.differences({0: whole("a", "b")}, reference, 2) == ["batches [0] instead of 2"]
    assert resume.differences(reference | {1: whole("c", "e")}, reference, 2) == ["batches [1] are others"]
    other = Batch(0, [("a", "tokens", "other pixels"), ("b", "tokens", "pixels")])
    assert resume.differences(reference | {0: other}, reference, 2) == ["batches [0] are others"]
    assert resume.loss_differences(reference, reference | {1: whole("c", "d", loss="0x1.1p0")}) == [
        "losses of batches [1] differ"
    ]


def test_lost_and_doubled_samples_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resume, "DOCUMENTS", (3, 2))
    monkeypatch.setattr(resume, "BATCH_SIZE", 2)
    monkeypatch.setattr(resume, "_PER_EPOCH", 2)
    good = {0: whole("a", "b"), 1: whole("c", "d"), 2: whole("c", "e"), 3: whole("a", "d")}
    assert resume.epochs_problems(good, 4) == []
    assert resume.epochs_problems(good | {1: whole("c", "a")}, 4) == [
        "epoch 0 has 4 documents, 3 different ones"
    ]
    assert resume.epochs_problems(good | {2: good[0], 3: good[1]}, 4) == ["epochs have the same order"]
    assert resume.epochs_problems({0: good[0]}, 1) == []
    assert resume.epochs_problems({1: good[0]}, 1) == ["batches [1]"]
