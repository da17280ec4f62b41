"""Workers on other machines, through a scheduler of dask.distributed (https://distributed.dask.org)."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lcl_composer.convert.pools import Pool, RemoteTask
from lcl_composer.errors import ConfigError, DataError, LCLError, one_line

#: Seconds between questions to the scheduler how many workers it has.
_ASK = 2.0


@contextmanager
def open_cluster(scheduler: str, task: RemoteTask) -> Iterator[Pool]:
    """Yield the workers of a scheduler; they may come and go.

    Args:
        scheduler: Address (``tcp://host:8786``) or scheduler file.
        task: What they run.

    Raises:
        ConfigError: If the package is not there, or the scheduler.
        DataError: If in the block the scheduler is lost, or workers have several threads or lack the package.
    """
    if find_spec("distributed") is None:
        raise ConfigError("--cluster needs dask.distributed; pip install 'lcl-composer[cluster]'")
    from distributed import Client, KilledWorker
    from distributed.comm.core import CommClosedError

    client = _connect(Client, scheduler)
    try:
        executor = client.get_executor(pure=False)
        yield Pool(executor, task, _slots(client, scheduler), killed=KilledWorker)
    except (CancelledError, CommClosedError) as error:
        raise DataError(f"{scheduler}: lost the scheduler; start again to continue") from error
    except (LCLError, OSError):
        raise
    except Exception as error:  # what the task itself raises is one of those
        what = f"{type(error).__name__}: {one_line(error)}"
        raise DataError(
            f"{scheduler}: its workers cannot run the conversion ({what}); install the same lcl-composer on "
            "all machines, the scheduler's too"
        ) from error
    finally:
        client.close()


def _connect(client: Any, scheduler: str) -> Any:
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it means is said in one line
    place: dict[str, Any] = {"address": scheduler}
    if "://" not in scheduler and (scheduler.endswith(".json") or Path(scheduler).is_file()):
        if not Path(scheduler).is_file():
            raise ConfigError(f"--cluster {scheduler}: no such scheduler file; name it or an address")
        place = {"scheduler_file": scheduler}
    try:
        return client(**place, set_as_default=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"--cluster {scheduler}: no scheduler answers there ({one_line(error, 150)}); name its address, "
            "tcp://HOST:8786, or the file it was started with"
        ) from error


def _slots(client: Any, scheduler: str) -> Callable[[], int]:
    """Return a function that says how many workers there are, and tells when there are none."""
    asked, count = 0.0, -1

    def slots() -> int:
        nonlocal asked, count
        if count > 0 and time.monotonic() - asked < _ASK:
            return count
        before, threads = count, client.nthreads()
        asked, count = time.monotonic(), len(threads)
        if not count and before:
            tqdm.write(f"{scheduler} has no workers; waiting for them", file=sys.stderr)
        for worker, number in threads.items():
            if number > 1:
                raise DataError(
                    f"{worker}: has {number} threads, of which one works at a time; start it by dask worker "
                    f"--nthreads 1 --nworkers {number}, and start again to continue"
                )
        return count

    return slots
