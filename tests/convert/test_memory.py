"""A bound on the memory that one step of reading a file takes.

What takes much runs in a fresh process: one that has run other tests holds memory that it asks no system for.
"""

from __future__ import annotations

import multiprocessing
import resource
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest

from lcl_composer.convert import memory
from lcl_composer.convert.memory import TooLarge, bounded, bounded_memory, check_rows

MIB = 1 << 20


def afresh(take: Callable[[], int]) -> int:
    """What ``take`` returns in a process of its own, with steps of 32 MiB."""
    context = multiprocessing.get_context("forkserver")  # see conftest.py
    with ProcessPoolExecutor(1, context, initializer=_small_steps) as executor:
        return executor.submit(take).result()


def _small_steps() -> None:
    memory.MAX_STEP = 32 * MIB


def test_threads_leave_no_limit_behind():
    before = resource.getrlimit(resource.RLIMIT_AS)

    def take() -> None:
        for _ in range(50):
            with bounded_memory():
                pass

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_what_is_larger_than_a_step_is_refused():
    with pytest.raises(TooLarge, match="more than 32 MiB"):
        afresh(_take_256)


def test_what_is_not_larger_than_a_step_is_read():
    assert afresh(_take_16) == 16 * MIB
    assert afresh(_take_256_mapped) == 256 * MIB


def _take_16() -> int:
    with bounded_memory():
        return len(bytearray(16 * MIB))


def _take_256() -> int:
    with bounded_memory():
        return len(bytearray(256 * MIB))


def _take_256_mapped() -> int:
    with bounded_memory(mapped=256 * MIB):
        return len(bytearray(256 * MIB))


def test_each_step_has_the_bound_for_itself_and_the_steps_before_the_one_too_large_are_kept():
    assert afresh(_take_steps) == 3


def _take_steps() -> int:
    steps = bounded(bytes(size * MIB) for size in (20, 20, 20, 256))
    kept = [next(steps) for _ in range(3)]
    with pytest.raises(TooLarge, match="more than 32 MiB"):
        next(steps)
    return len(kept)


def test_rows_that_have_no_byte_in_their_file(tmp_path):
    path = tmp_path / "table"
    path.write_bytes(b"x" * 100)
    check_rows(800, path)
    with pytest.raises(TooLarge, match="more rows"):
        check_rows(801, path)
