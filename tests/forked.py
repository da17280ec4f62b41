"""Commands in processes that begin with everything imported; a start of Python would take nine seconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.jobs import free_port, kill_group, launch_ranks


class Forked:
    """A process in a session of its own, and what it prints.

    Args:
        folder: Its working directory.
        function: A module-level function, which it calls and ends.
        args: Picklable arguments.
    """

    def __init__(self, folder: Path, function: Callable[..., Any], *args: Any):
        handle, name = tempfile.mkstemp(".txt", "output-", folder)
        os.close(handle)
        self._output = Path(name)
        context = multiprocessing.get_context("forkserver")  # see conftest.py
        self._process = context.Process(
            target=_begin, args=(folder, self._output, dict(os.environ), function, args)
        )
        self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()

    def finish(self, timeout: float = 180) -> tuple[int | None, str]:
        """Exit code and output; without a code if it does not end."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            self.kill()
        return code, self.output()

    def kill(self) -> None:
        """``kill -9`` it and all that it started, at once."""
        kill_group(self._process)


def _begin(
    folder: Path, output: Path, environment: dict[str, str], function: Callable[..., Any], args: tuple
) -> None:
    import torch

    os.setsid()
    with output.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*args)


def script(path: Path, *arguments: str) -> None:
    """Run a script as ``python PATH ARGUMENTS`` does."""
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def module(name: str, *arguments: str) -> None:
    """Run a module as ``python -m NAME ARGUMENTS`` does."""
    sys.argv = [name, *arguments]
    sys.path.insert(0, os.getcwd())
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def ranks_of(ranks: int, path: Path, *arguments: str) -> None:
    """Run a script as ``composer -n RANKS PATH ARGUMENTS`` does."""
    world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    launch_ranks(world | {"MASTER_PORT": str(free_port())}, partial(script, path, *arguments))
