"""A bound on the memory that one step of reading a file takes."""

from __future__ import annotations

import resource
import threading

import pytest

from lcl_composer.convert import memory
from lcl_composer.convert.memory import TooLarge, bounded, bounded_memory, check_rows

MIB = 1 << 20


@pytest.fixture(autouse=True)
def small_steps(monkeypatch) -> None:
    monkeypatch.setattr(memory, "MAX_STEP", 32 * MIB)


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


def test_what_is_larger_than_a_step_is_refused_and_what_is_not_is_read():
    with bounded_memory():
        bytearray(16 * MIB)
    with pytest.raises(TooLarge), bounded_memory():
        bytearray(256 * MIB)
    with bounded_memory(mapped=256 * MIB):
        bytearray(256 * MIB)


def test_each_step_has_the_bound_for_itself_and_the_steps_before_the_one_too_large_are_kept():
    steps = bounded(bytes(size * MIB) for size in (20, 20, 20, 256))
    kept = [next(steps) for _ in range(3)]
    with pytest.raises(TooLarge, match="more than 32 MiB"):
        next(steps)
    assert len(kept) == 3


def test_rows_that_have_no_byte_in_their_file(tmp_path):
    path = tmp_path / "table"
    path.write_bytes(b"x" * 100)
    check_rows(800, path)
    with pytest.raises(TooLarge, match="more rows"):
        check_rows(801, path)
