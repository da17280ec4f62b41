"""Gives each data set of a job its part of Streaming's shared memory, and clears what killed jobs left.

Streaming 0.13 names its segments ``/dev/shm/NNNNNN_<what>`` and its lock files
``$TMPDIR/NNNNNN_<what>_filelock``, with the first free number. ``kill -9`` leaves both behind; a relaunch
then steps over them (they pile up), or takes the dead job for a live one that uses the same cache folder,
and stops. Streaming's own ``clean_stale_shared_memory`` ends at the first clean number and would take a live
job's segments.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from streaming.base import dataset as streaming_dataset
from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, LOCALS, SHM_TO_CLEAN
from streaming.base.shared import SharedMemory
from streaming.base.shared.prefix import _check_and_find_retrying, _get_path, _pack_locals
from streaming.base.world import World

from lcl_composer.errors import DataError
from lcl_composer.nodes import on_first_of_node

log = logging.getLogger(__name__)

_SEGMENTS = re.compile(rf"(\d{{6,}})_({'|'.join(SHM_TO_CLEAN)})")
_LOCKS = re.compile(rf"(\d{{6,}})_({BARRIER_FILELOCK}|{CACHE_FILELOCK})")

#: Inode numbers of the first namespaces of a machine (include/linux/proc_ns.h).
_FIRST_IPC, _FIRST_PID = 0xEFFFFFFF, 0xEFFFFFFC


def clean_shared_memory(
    shm: Path = Path("/dev/shm"), temporary: Path | None = None, proc: Path = Path("/proc")
) -> list[Path]:
    """Remove this user's segments and lock files that no live process uses.

    A number is in use while any process maps one of its segments, so other jobs of the same user on the same
    machine keep theirs. Call it once a node, before the first data set is built. Does nothing where that
    cannot be known: outside Linux, and in a container that shares the host's memory but not its processes
    (``docker run --ipc=host`` without ``--pid=host``).

    Args:
        shm: Where shared memory lies.
        temporary: Where lock files lie, ``$TMPDIR`` by default.
        proc: The process file system.

    Returns:
        What was removed.
    """
    with first_come():  # a segment that a job is making is there before it is mapped
        segments, locks = find_leftovers(shm, temporary, proc)
        removed = [p for p in segments if _remove(p)] + [p for p in locks if _remove_lock(p)]
    if removed:
        log.info("removed %d leftovers of killed jobs from shared memory and lock files", len(removed))
    return removed


def find_leftovers(
    shm: Path = Path("/dev/shm"), temporary: Path | None = None, proc: Path = Path("/proc")
) -> tuple[list[Path], list[Path]]:
    """Return the segments and the lock files that :func:`clean_shared_memory` would remove."""
    if not shm.is_dir() or not proc.is_dir() or _sees_too_few_processes(proc):
        return [], []
    # Listed before the processes: a segment made in between is not touched.
    segments = _owned(shm, _SEGMENTS)
    locks = _owned(temporary or Path(tempfile.gettempdir()), _LOCKS)
    if not segments and not locks:
        return [], []
    live = _numbers_in_use(shm, proc)
    return [p for p, number in segments if number not in live], [p for p, n in locks if n not in live]


def mend_numbers() -> None:
    """Let Streaming's data sets be numbered by :func:`take_number`; call before one is built.

    Streaming lets each rank look for a free number by itself, and only then the first take it. Of two jobs
    on the same data that start together, a rank of one finds the number that the other has just taken, and
    holds it for its own job's: both then wait for ever, or count each other's epochs.
    """
    streaming_dataset.get_shm_prefix = take_number  # pyright: ignore[reportPrivateImportUsage]


def take_number(
    streams_local: Sequence[str], streams_remote: Sequence[str | None], world: World, retry: int = 100
) -> tuple[int, SharedMemory]:
    """Take a number for a data set: the first rank of each node finds and takes it, and tells the others.

    Args:
        streams_local: Cache folder of each stream.
        streams_remote: Where each is fetched from, or None.
        world: Not used, as the process group says who is first.
        retry: How often to look again while another job holds one of the folders.

    Returns:
        The number, and the segment that marks it as taken.

    Raises:
        DataError: If another data set of this machine fetches into one of the folders.
    """
    folders, remotes = list(streams_local), list(streams_remote)
    taken: list[SharedMemory] = []

    def take() -> int:
        with first_come():
            number = _free_number(folders, remotes, retry)
            data = _pack_locals(folders, number)
            taken.append(SharedMemory(_get_path(number, LOCALS), True, len(data)))
            taken[0].buf[: len(data)] = data
        return number

    number = on_first_of_node(take)
    return number, taken[0] if taken else SharedMemory(_get_path(number, LOCALS), False)


def _free_number(folders: list[str], remotes: list[str | None], retry: int) -> int:
    try:
        return max(_check_and_find_retrying(folders, remotes, name, retry) for name in SHM_TO_CLEAN)
    except ValueError as error:
        caches = ", ".join(f for f, remote in zip(folders, remotes, strict=True) if remote)
        raise DataError(
            f"another data set on this machine fetches into {caches}: give one of them another `local`, or "
            "end the other job"
        ) from error


@contextmanager
def first_come() -> Iterator[None]:
    """Let one job of this user on this machine at a time choose a number, or clear what is left of others.

    Streaming looks for a free number and takes it in two steps; of two jobs that start together the second
    stops with FileExistsError. Nothing that waits for another rank may be done inside.
    """
    # Beside what they contend for: jobs may have temporary folders of their own and share the memory.
    folder = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
    with (folder / f"lcl_composer_{os.getuid()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _owned(folder: Path, pattern: re.Pattern[str]) -> list[tuple[Path, str]]:
    """Return ``(path, number)`` of this user's files whose whole name matches."""
    found = []
    for entry in os.scandir(folder):
        match = pattern.fullmatch(entry.name)
        with suppress(FileNotFoundError):  # its job has just ended
            if match and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                found.append((Path(entry.path), match[1]))
    return found


def _numbers_in_use(shm: Path, proc: Path) -> set[str]:
    """Return the numbers with a segment that some process maps.

    A process that has a ``/dev/shm`` of its own maps the same names on another device: those are not ours.
    """
    device = os.stat(shm).st_dev
    place = rf"{os.major(device):02x}:{os.minor(device):02x} \d+ +{re.escape(str(shm))}"
    pattern = re.compile(rf" {place}/{_SEGMENTS.pattern}(?: \(deleted\))?$", re.MULTILINE)
    numbers: set[str] = set()
    for maps in proc.glob("[0-9]*/maps"):
        try:
            numbers.update(match[1] for match in pattern.finditer(maps.read_text(errors="replace")))
        except OSError:  # ended meanwhile, or another user's, whose segments are not ours
            continue
    return numbers


def _sees_too_few_processes(proc: Path) -> bool:
    """Whether others may map this shared memory whom ``/proc`` does not show."""
    try:
        return (proc / "self/ns/ipc").stat().st_ino == _FIRST_IPC and (
            proc / "self/ns/pid"
        ).stat().st_ino != _FIRST_PID
    except OSError:
        return True


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:  # removed by someone else, or not ours to remove
        return False
    return True


def _remove_lock(path: Path) -> bool:
    """Remove a lock file that nobody holds."""
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _remove(path)
    except OSError:
        return False
