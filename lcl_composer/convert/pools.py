"""The processes that convert parts: of this machine, or of an executor that has some on other machines."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcl_composer.convert.machines import Home
from lcl_composer.convert.progress import Progress
from lcl_composer.convert.source import Part
from lcl_composer.convert.worker import Job, convert_part
from lcl_composer.errors import DataError, LCLError, one_line

_ticks: Any = None  # in a worker process of this machine: the count of records shared with the parent
_known: set[Path] = set()  # in a process elsewhere: tokens of the conversions that it fits
#: Seconds between looks whether a conversion elsewhere was given up.
_LOOK = 2.0


@dataclass(frozen=True)
class Pool:
    """Processes that convert parts.

    Attributes:
        executor: Runs calls in them.
        task: What it runs: index and part to the number of records read.
        slots: Says how many parts they convert at once by now.
        records: Says how many records they have read, or None to add up what ``task`` returns.
        killed: What a call ends with if every process died that tried it.
    """

    executor: Executor
    task: Callable[[int, Part], int]
    slots: Callable[[], int]
    records: Callable[[], int] | None = None
    killed: type[BaseException] | tuple[()] = ()


def run_parts(pool: Pool, parts: Iterable[tuple[int, Part]], bar: Progress) -> None:
    """Convert parts; two for every process are handed out at a time, so that the rest waits in the plan.

    Raises:
        DataError: If a part killed every process that tried it; all others are converted then.
    """
    run = _Run(pool, bar)
    try:
        for index, part in parts:
            run.start(index, part)
            while len(run.running) >= 2 * max(1, pool.slots()):
                run.collect()
        run.finish()
        # A process takes what waits for it along. Alone, a part that did no harm comes through.
        suspects, run.killed = run.killed, []
        for index, part in suspects:
            run.start(index, part)
            run.finish()
    except BaseException:
        for future in run.running:
            future.cancel()
        pool.executor.shutdown(wait=False)
        raise
    if run.killed:
        names = ", ".join(part.name for _, part in run.killed[:5])
        raise DataError(
            f"{names}: every worker that converted {'it' if len(run.killed) == 1 else 'them'} died (out of "
            "memory?), all else is converted; give workers more memory and start again to continue"
        )


class _Run:
    """The parts that are on their way."""

    def __init__(self, pool: Pool, bar: Progress) -> None:
        self.running: dict[Future[int], tuple[int, Part]] = {}
        self.killed: list[tuple[int, Part]] = []
        self._pool = pool
        self._bar = bar
        self._records = 0

    def start(self, index: int, part: Part) -> None:
        self.running[self._pool.executor.submit(self._pool.task, index, part)] = (index, part)

    def collect(self) -> None:
        done, _ = wait(self.running, timeout=0.2, return_when=FIRST_COMPLETED)
        for future in done:
            part = self.running.pop(future)
            try:
                self._records += future.result()
                self._bar.count_part()
            except self._pool.killed:
                self.killed.append(part)
        self._bar.show_documents(self._pool.records() if self._pool.records else self._records)

    def finish(self) -> None:
        while self.running:
            self._pool.slots()  # says if there are none
            self.collect()


@contextmanager
def local_pool(job: Job, workers: int) -> Iterator[Pool]:
    """Yield worker processes of this machine.

    Raises:
        DataError: If one of them dies in the block.
    """
    # A server without threads forks the workers; it imports what they need once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ticks = context.Value("q", 0)
    with ProcessPoolExecutor(workers, context, _start_worker, (ticks,)) as executor:
        try:
            yield Pool(executor, LocalTask(job), lambda: workers, lambda: ticks.value)
        except BrokenProcessPool as error:
            raise DataError(
                f"{job.root}: a worker process died (out of memory?); start again to continue, "
                "perhaps with fewer workers"
            ) from error


@dataclass(frozen=True)
class LocalTask:
    """Converts a part in a worker process of this machine."""

    job: Job

    def __call__(self, index: int, part: Part) -> int:
        """Convert a part; its records are counted one by one."""
        convert_part(self.job, index, part, _count_tick)
        return 0


def _start_worker(ticks: Any) -> None:
    global _ticks
    _ticks = ticks
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent says what happened
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End with the parent, however it ends: an orphan would write on in the folder of the next start."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _count_tick() -> None:
    with _ticks.get_lock():
        _ticks.value += 1


@dataclass(frozen=True)
class RemoteTask:
    """Converts a part in a process that may be of another machine.

    It may run twice, even at once with itself: what it writes is renamed to its place, and is the same.
    """

    job: Job
    home: Home

    def __call__(self, index: int, part: Part) -> int:
        """Convert a part; return the number of records read.

        Raises:
            DataError: If the machine differs from that which planned, or the part cannot be converted.
            OSError: If a file cannot be read or written.
        """
        ticks = _Ticks(self.home)
        try:
            self._convert(index, part, ticks)
        except LCLError:
            raise
        except OSError as error:
            reason = f"{error.strerror or one_line(error)} on {socket.gethostname()}"
            raise OSError(error.errno, reason, error.filename) from None
        except Exception as error:  # its class may be unknown where the conversion was begun
            what = f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
            raise DataError(f"{part.name}: cannot be converted on {socket.gethostname()} ({what})") from None
        return ticks.count

    def _convert(self, index: int, part: Part, ticks: _Ticks) -> None:
        with self.home.entered():
            if self.home.token not in _known:
                self.home.check()
                _known.add(self.home.token)
            convert_part(self.job, index, part, ticks)


class _Ticks:
    """Counts records, and ends the part when the conversion was given up: no one else stops a thread."""

    def __init__(self, home: Home) -> None:
        self.count = 0
        self._token = home.token
        self._looked = time.monotonic()

    def __call__(self) -> None:
        self.count += 1
        if time.monotonic() - self._looked > _LOOK:
            self._looked = time.monotonic()
            if not self._token.exists():
                raise DataError(f"{self._token.parents[2]}: the conversion was given up")
