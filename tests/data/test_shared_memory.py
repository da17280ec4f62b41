from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
from streaming.base.shared.prefix import get_shm_prefix
from streaming.base.world import World

from lcl_composer.data.shared_memory import clean_shared_memory, first_come
from lcl_composer.errors import DataError
from tests.algorithms.training import as_launched
from tests.data.conftest import MakeDataset
from tests.data.loaders import loader_of
from tests.distributed import run_ranks

SHM = Path("/dev/shm")
pytestmark = pytest.mark.skipif(not SHM.is_dir(), reason="no /dev/shm")

#: Makes a segment and dies as under kill -9.
LEAK = """
import os, signal
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
resource_tracker.register = lambda *_: None
SharedMemory({name!r}, create=True, size=8)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def number() -> str:
    return f"9{os.getpid() % 10**7:07}"


def leak(name: str) -> None:
    died = subprocess.run([sys.executable, "-c", LEAK.format(name=name)], check=False)
    assert died.returncode == -signal.SIGKILL  # behind the segment


def test_leftovers_go(number: str, tmp_path: Path):
    leak(f"{number}_locals")
    leak(f"{number}_barrier")
    lock = tmp_path / f"{number}_barrier_filelock"
    lock.touch()
    removed = clean_shared_memory(temporary=tmp_path)
    # Another test's job may be quicker, as it clears what is here too.
    assert lock in removed
    assert not any(path.exists() for path in (SHM / f"{number}_locals", SHM / f"{number}_barrier", *removed))
    assert lock not in clean_shared_memory(temporary=tmp_path)


def test_what_a_live_process_uses_stays(number: str, tmp_path: Path):
    segment = SharedMemory(f"{number}_locals", create=True, size=8)
    leak(f"{number}_next_epoch")
    lock = tmp_path / f"{number}_cache_filelock"
    lock.touch()
    try:
        clean_shared_memory(temporary=tmp_path)
        assert (SHM / f"{number}_locals").exists()
        assert (SHM / f"{number}_next_epoch").exists()
        assert lock.exists()
    finally:
        segment.close()
        segment.unlink()
    clean_shared_memory(temporary=tmp_path)
    assert not (SHM / f"{number}_next_epoch").exists()


def test_other_files_and_held_locks_stay(number: str, tmp_path: Path):
    other = tmp_path / f"{number}_mine"
    other.touch()
    held = tmp_path / f"{number}_cache_filelock"
    with held.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        clean_shared_memory(temporary=tmp_path)
        assert held.exists()
    assert other.exists()


def test_a_segment_that_goes_meanwhile_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another job ends between the listing of the folder and the look at its owner."""
    (tmp_path / "000001_barrier").touch()
    entries = list(os.scandir(tmp_path))
    (tmp_path / "000001_barrier").unlink()
    monkeypatch.setattr(os, "scandir", lambda folder: entries)
    assert clean_shared_memory(tmp_path, tmp_path) == []


def test_nothing_is_touched_where_processes_cannot_be_seen(number: str, tmp_path: Path):
    segment = SharedMemory(f"{number}_locals", create=True, size=8)
    try:
        assert not clean_shared_memory(temporary=tmp_path, proc=tmp_path)
        assert (SHM / f"{number}_locals").exists()
    finally:
        segment.close()
        segment.unlink()


#: Holds a segment of this name in a /dev/shm of its own until its input ends.
ELSEWHERE = """
mount -t tmpfs tmpfs /dev/shm && exec {python} -c "
import sys
from multiprocessing.shared_memory import SharedMemory
segment = SharedMemory('{name}', create=True, size=8)
print('there', flush=True)
sys.stdin.read()
segment.unlink()
"
"""


def test_a_job_with_a_shared_memory_of_its_own_keeps_nothing_here(number: str, tmp_path: Path):
    if shutil.which("unshare") is None:
        pytest.skip("there is no `unshare` here")
    name = f"{number}_locals"
    leak(name)
    script = ELSEWHERE.format(python=sys.executable, name=name)
    command = ["unshare", "-m", "sh", "-c", script]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as job:
        assert job.stdin is not None
        assert job.stdout is not None
        started = job.stdout.readline()
        clean_shared_memory(temporary=tmp_path)
        job.stdin.close()
        if not started:
            pytest.skip("`unshare -m` is not permitted here")
    assert not (SHM / name).exists()


def number_of_a_rank(rank: int, ranks: int, folder: Path) -> int:
    as_launched(rank, ranks)
    (folder / f"rank {rank} is there").touch()
    return loader_of(local=str(folder)).dataloader.dataset._shm_prefix_int  # type: ignore[union-attr]


@pytest.mark.world_size(2)
def test_a_job_that_starts_beside_another_has_numbers_of_its_own(make_dataset: MakeDataset):
    """The other one, on the same data, takes a number while the ranks of this one look for theirs."""
    folder = make_dataset(12)
    with ThreadPoolExecutor() as pool:
        with first_come():
            job = pool.submit(run_ranks, 2, number_of_a_rank, folder)
            while len(list(folder.glob("rank *"))) < 2:
                assert not job.done(), job.result()
                time.sleep(0.05)
            time.sleep(1)  # Streaming's own search of rank 1 ends well within
            others, segment = get_shm_prefix([str(folder)], [None], World(1, 1, 1, 0))
        numbers = job.result()
    segment.cleanup()
    assert numbers[0] == numbers[1] != others


def test_a_cache_that_another_data_set_fills_is_refused(make_dataset: MakeDataset, tmp_path: Path):
    places = {"local": str(tmp_path / "cache"), "remote": str(make_dataset(12))}
    first = loader_of(**places)
    with pytest.raises(
        DataError, match=r"another data set .* fetches into .*/cache: give one of them another"
    ):
        loader_of(**places)
    del first
