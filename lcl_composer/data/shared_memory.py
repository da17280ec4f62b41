"""Clears what killed jobs left of Streaming's shared memory and lock files.

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, SHM_TO_CLEAN

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
    segments, locks = find_leftovers(shm, temporary, proc)
    removed = [path for path in segments if _remove(path)] + [path for path in locks if _remove_lock(path)]
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


@contextmanager
def first_come() -> Iterator[None]:
    """Let one job of this user on this machine at a time choose its number.

    Streaming looks for a free number and takes it in two steps; of two jobs that start together the second
    stops with FileExistsError. The local leader of each job holds this while it builds a data set.
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
