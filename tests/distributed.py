"""Run a function on several gloo ranks of this machine."""

from __future__ import annotations

import datetime
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout_s: int = 120) -> list[Any]:
    """Call ``function(rank, world_size, *args)`` on ``world_size`` gloo processes.

    Args:
        world_size: number of processes.
        function: a module-level function (it is found by name in the child), with results that
            ``torch.save`` takes.
        args: picklable arguments.
        timeout_s: a collective that waits longer raises, so a rank that never joins fails the test.

    Returns:
        What the ranks returned, in rank order. An exception on a rank is raised here with its traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(  # type: ignore[attr-defined]
            _child,
            args=(world_size, _free_port(), folder, timeout_s, function, args),
            nprocs=world_size,
            start_method="forkserver",  # see conftest.py
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _child(
    rank: int,
    world_size: int,
    port: int,
    folder: str,
    timeout_s: int,
    function: Callable[..., Any],
    args: tuple,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=timeout_s),
    )
    torch.save(function(rank, world_size, *args), Path(folder) / f"{rank}.pt")
    dist.barrier()
    # Taking gloo down can deadlock in torch 2.7: its destructor waits, with the interpreter's lock, for a
    # thread that wants that lock. A process that ends at once takes nothing down.
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
