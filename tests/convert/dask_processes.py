"""A scheduler and workers of dask.distributed as processes on loopback, and a source that kills them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
from distributed import Scheduler, Worker

from lcl_composer.convert.img2dataset import Img2Dataset
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted
from tests.forked import Forked


class Deadly(Img2Dataset):
    """Kills the process that converts the record named by ``KILL_AT``, as often as ``KILL_COUNT`` says."""

    def samples(self, name: str, record, report: ConversionReport) -> Iterator[Converted]:
        if name == os.environ.get("KILL_AT"):
            deaths = Path(os.environ["KILL_MARKS"])
            if len(list(deaths.iterdir())) < int(os.environ["KILL_COUNT"]):
                (deaths / str(os.getpid())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("SLOW", 0)))
        yield from super().samples(name, record, report)


def run_scheduler(file: str, allowed_failures: int) -> None:
    async def serve() -> None:
        async with Scheduler(port=0, host="127.0.0.1", dashboard=False, scheduler_file=file) as scheduler:
            await scheduler.finished()

    with dask.config.set({"distributed.scheduler.allowed-failures": allowed_failures}):
        asyncio.run(serve())


def run_worker(file: str, threads: int) -> None:
    async def work() -> None:
        async with Worker(scheduler_file=file, nthreads=threads, host="127.0.0.1", dashboard=False) as worker:
            await worker.finished()

    asyncio.run(work())


@contextmanager
def cluster(folder: Path, workers: int = 2, threads: int = 1, allowed_failures: int = 3) -> Iterator[str]:
    """Processes below ``folder``; yields the scheduler's file."""
    folder.mkdir()
    file = folder / "scheduler.json"
    processes = [Forked(folder, run_scheduler, str(file), allowed_failures)]
    try:
        while not file.exists():
            assert processes[0].poll() is None, processes[0].output()
            time.sleep(0.01)
        processes += [Forked(folder, run_worker, str(file), threads) for _ in range(workers)]
        yield str(file)
    finally:
        for process in processes:
            process.kill()
