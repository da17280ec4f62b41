"""What every test runs under."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
from collections.abc import Iterator
from multiprocessing import forkserver
from typing import Any

import pytest
from streaming.base.shared.memory import SharedMemory

# Ranks, jobs and converters' workers fork from one process that has imported what takes them seconds each.
multiprocessing.set_forkserver_preload(["tests.preloaded"])
forkserver.ensure_running()

_made: list[SharedMemory] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process ends on one while the others have nothing left."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Leave what is imported out of every collection of garbage, or one takes half a second."""
    gc.collect()
    gc.freeze()


class _Tracked:
    """``SharedMemory.__init__`` that also takes down what it makes."""

    def __init__(self, init: Any):
        self.init = init

    def __get__(self, instance: SharedMemory, owner: type) -> Any:
        _made.append(instance)
        return self.init.__get__(instance, owner)


@pytest.fixture(autouse=True)
def _let_go_of_shared_memory() -> Iterator[None]:
    """Close what a test's streams hold open.

    Streaming keeps each piece of shared memory, and two open files with it, until the process ends: it
    registers their clean-up at exit. A session of a thousand streams would run out of files.
    """
    yield
    if _made:
        for memory in _made:
            atexit.unregister(memory.cleanup)
        _made.clear()
        gc.collect()


SharedMemory.__init__ = _Tracked(SharedMemory.__init__)  # pyright: ignore[reportAttributeAccessIssue]
