"""A bound on the memory that one step of reading a file takes, whatever the file unpacks to.

A few kilobytes of Parquet stand for terabytes in many ways: a compressed page, one long value of a dictionary
that a list names a million times, run lengths of nulls. Compressed buffers of Arrow files do the same. What
their metadata say need not be true, and pyarrow has no bound of its own, so the system refuses the memory.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TypeVar

T = TypeVar("T")

#: Bytes that a step may take. A page of Parquet that is meant has up to 2 GiB, and is copied once.
MAX_STEP = 1 << 32
#: More rows than this a byte of its file hold nothing: null and null again.
MAX_ROWS_PER_BYTE = 8

_STATM = Path("/proc/self/statm")
#: The limit is the process's: of two threads one waits.
_ONE = Lock()


class TooLarge(ValueError):
    """What a file unpacks to is more than a step may take; the message is what it is counted under."""


def bounded(steps: Iterator[T], mapped: int = 0) -> Iterator[T]:
    """Yield from ``steps``, of which each may take :data:`MAX_STEP` bytes of memory more than there are.

    Args:
        steps: What reads and unpacks.
        mapped: Bytes of files that it maps into memory.

    Raises:
        TooLarge: At the step that takes more.
    """
    end = object()
    while True:
        with bounded_memory(mapped):
            step = next(steps, end)
        if step is end:
            return
        yield step  # pyright: ignore[reportReturnType]


@contextmanager
def bounded_memory(mapped: int = 0) -> Iterator[None]:
    """Let the block take :data:`MAX_STEP` bytes of memory and, besides, ``mapped`` of files.

    Raises:
        TooLarge: If it asks for more.
    """
    with _ONE:
        before = resource.getrlimit(resource.RLIMIT_AS)
        try:
            if _STATM.exists():  # Linux; elsewhere the limit is not kept either
                most = int(_STATM.read_text().split()[0]) * resource.getpagesize() + MAX_STEP + mapped
                limits = [limit for limit in (most, *before) if limit != resource.RLIM_INFINITY]
                resource.setrlimit(resource.RLIMIT_AS, (min(limits), before[1]))
            yield
        except MemoryError as error:
            raise TooLarge(
                f"unpacks to more than {MAX_STEP >> 20} MiB at a time; if that is meant, write it anew with "
                "fewer rows a group"
            ) from error
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


def check_rows(rows: int, path: Path) -> None:
    """Raise TooLarge if a file claims more rows than could hold anything."""
    if rows > MAX_ROWS_PER_BYTE * path.stat().st_size:
        raise TooLarge("more rows than its bytes can hold")
