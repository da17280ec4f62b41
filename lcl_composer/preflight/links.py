"""All-reduce between all ranks, by gloo and NCCL: whether it ends, is right, and how fast it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from lcl_composer.errors import one_line
from lcl_composer.preflight.finding import Finding, fail, ok, size, warn
from lcl_composer.preflight.meeting import Absent, Meeting, own_interface
from lcl_composer.preflight.world import World

#: Seconds that each backend may take, the meeting of its ranks included.
SECONDS = 60.0
_BYTES, _ROUNDS = 1 << 25, 3
#: A first, small one: if it takes longer than this, it is the only one.
_FEW_BYTES, _QUICK = 1 << 20, 0.2
#: Seconds for the gradients of a step from which on the network is worth a word.
_SLOW = 1.0


def reduce(world: World, backends: Sequence[str], seconds: float = SECONDS) -> dict[str, Any]:
    """All-reduce on this rank by each backend, all ranks at once.

    Returns:
        Backend to bytes a second, or to what went wrong, in words. The bytes are those that cross a link of a
        ring, 2 (n - 1) / n of the tensor, as nccl-tests count them ("busbw").
    """
    found: dict[str, Any] = {}
    for backend in backends:
        result: list[Any] = []
        # In a thread: NCCL may never come back, and its own watchdog would end the process without a word.
        thread = threading.Thread(target=_try, args=(world, backend, seconds, result), daemon=True)
        thread.start()
        thread.join(seconds + 5)
        found[backend] = result[0] if result else f"did not end within {seconds:g} s"
    return found


def links(
    meeting: Meeting, backends: Sequence[str], gradients: int, seconds: float = SECONDS
) -> dict[str, Finding]:
    """What all ranks together found; rank 0 calls it after its own :func:`reduce`.

    Args:
        meeting: Where the ranks put what they found, under ``links``.
        backends: What was tried.
        gradients: Bytes that a step will reduce.
        seconds: What each backend was given.
    """
    if meeting.world.size == 1:
        return {"all-reduce": ok("one process: nothing to reduce")}
    try:
        found = meeting.gather("links", range(meeting.world.size), len(backends) * (seconds + 5) + 10)
    except Absent as error:
        return {"all-reduce": fail(f"{error}; the others wait for it in every step")}
    return {f"all-reduce, {name}": _judge(meeting.world, name, found, gradients) for name in backends}


def _judge(world: World, backend: str, found: dict[int, dict[str, Any]], gradients: int) -> Finding:
    wrong = {rank: values[backend] for rank, values in found.items() if isinstance(values[backend], str)}
    if wrong:
        rank, said = next(iter(wrong.items()))
        variable = f"{backend.upper()}_SOCKET_IFNAME"
        interface = own_interface(world.address, psutil.net_if_addrs) or "INTERFACE"
        return fail(
            f"{len(wrong)} of {len(found)} ranks failed; rank {rank}: {said}. Nodes must reach one "
            f"another on all ports; set {variable}={interface} if a node takes the wrong interface"
        )
    slowest = min(values[backend] for values in found.values())
    share = 2 * (world.size - 1) / world.size
    seconds = share * gradients / slowest
    said = f"{size(slowest)}/s over {world.size} ranks"
    said += f"; {size(gradients)} of gradients take {seconds:.2g} s a step" * bool(gradients)
    trains = backend == "nccl" or not torch.cuda.is_available()
    if trains and seconds > _SLOW:
        return warn(f"{said}: a slow network; is it the interface that is meant?")
    return ok(said)


def _try(world: World, backend: str, seconds: float, result: list[Any]) -> None:
    try:
        result.append(_measure(world, backend, seconds))
    except Exception as error:  # gloo's and NCCL's own kinds
        result.append(one_line(error, 160))


def _measure(world: World, backend: str, seconds: float) -> float:
    """Bytes a second that cross a link; few are sent where many would take long."""
    timeout = timedelta(seconds=seconds)
    device = torch.device("cuda", world.local_rank) if backend == "nccl" else torch.device("cpu")
    if not dist.is_initialized():
        # A connection of its own: another thread's wait would hold up whoever shares one.
        store = TCPStore(world.address, world.port, is_master=False, wait_for_workers=False, timeout=timeout)
        place = {"store": PrefixStore("preflight", store), "rank": world.rank, "world_size": world.size}
        dist.init_process_group(backend, timeout=timeout, **place)
        group = None
    else:
        group = dist.new_group(backend=backend, timeout=timeout)
    first = _reduce(world, group, device, _FEW_BYTES, 1)
    slowest = torch.tensor([first], dtype=torch.float64, device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=group)  # all ranks must agree on what comes next
    many = slowest.item() < _QUICK
    seconds = _reduce(world, group, device, _BYTES, _ROUNDS) if many else slowest.item()
    return 2 * (world.size - 1) / world.size * (_BYTES if many else _FEW_BYTES) / seconds


def _reduce(world: World, group: Any, device: torch.device, count: int, rounds: int) -> float:
    """Seconds of one all-reduce of so many bytes, the mean over rounds after a first.

    Raises:
        ArithmeticError: If the sum is wrong.
    """
    tensor = torch.full((count // 4,), float(world.rank + 1), device=device)
    dist.all_reduce(tensor, group=group)
    expected = world.size * (world.size + 1) / 2
    if not bool((tensor == expected).all()):
        raise ArithmeticError(f"the sum is {tensor.max().item():g}, not {expected:g}")
    begun = time.perf_counter()
    for _ in range(rounds):
        dist.all_reduce(tensor, group=group)
    _settle(device)
    return (time.perf_counter() - begun) / rounds


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
