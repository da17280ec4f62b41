"""Where the ranks meet before there is a process group: a key-value store at MASTER_ADDR.

Collectives of a process group wait for whoever is missing and cannot say who. Here every rank writes what it
has under its own key, rank 0 knows whose is missing, and no wait is without end.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta
from typing import Any

from torch.distributed import HashStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from lcl_composer.errors import LCLError, one_line
from lcl_composer.preflight.finding import numbers
from lcl_composer.preflight.world import World

#: A rank that says nothing for so many seconds, while it should every second, is dead or cut off.
SILENCE = 20.0
_POLL = 0.02


class Absent(LCLError):
    """Ranks that did not come, or came and fell silent."""

    def __init__(self, message: str, ranks: Collection[int]):
        super().__init__(message)
        self.ranks = ranks


class Meeting:
    """Rank 0 hears all others, and they hear it.

    Args:
        world: This process among the others.
        wait: Seconds to wait for those that start later.

    Raises:
        LCLError: If rank 0 cannot listen at its port, or cannot be reached.
    """

    def __init__(self, world: World, wait: float):
        self.world, self.wait = world, wait
        self.store: Any = HashStore() if world.size == 1 else _open(world, wait)
        self._beats: dict[int, tuple[bytes, float]] = {}
        self._ended = threading.Event()
        self._heard = time.monotonic()
        for work in (self._beat, self._watch) if world.size > 1 else ():
            threading.Thread(target=work, daemon=True).start()

    def put(self, name: str, value: Any) -> None:
        """Write this rank's value, fit for JSON, for rank 0 to gather."""
        self.store.set(f"{name}/{self.world.rank}", json.dumps(value))

    def gather(self, name: str, ranks: Iterable[int], seconds: float) -> dict[int, Any]:
        """Return the values of some ranks; rank 0 calls it.

        Raises:
            Absent: If some are not there in time, or have fallen silent; names them.
        """
        deadline, missing, found = time.monotonic() + seconds, set(ranks), {}
        listen = time.monotonic()
        while missing:
            for rank in [rank for rank in missing if self.store.check([f"{name}/{rank}"])]:
                found[rank] = json.loads(self.store.get(f"{name}/{rank}"))
                missing.discard(rank)
            if not missing:
                break
            if time.monotonic() > listen:
                listen += 1
                if silent := [rank for rank in sorted(missing) if self._is_silent(rank)]:
                    why = "came and fell silent: dead, or its network is cut; its log may say more"
                    raise Absent(f"{self._named(silent)} {why}", silent)
            if time.monotonic() > deadline:
                raise Absent(f"{self._named(missing)} did not come within {seconds:g} s", sorted(missing))
            time.sleep(_POLL)
        return found

    def say(self, name: str, value: Any) -> None:
        """Tell all ranks; rank 0 calls it."""
        self.store.set(name, json.dumps(value))

    def hear(self, name: str, seconds: float, poll: float = _POLL) -> Any:
        """Return what was said under a name.

        Raises:
            LCLError: If nothing was said in time, or rank 0 is gone.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self.store.check([name]):
                    return json.loads(self.store.get(name))
            except RuntimeError as error:
                raise LCLError(f"rank 0 at {self.world.address} is gone ({one_line(error, 80)})") from error
            if time.monotonic() > deadline:
                raise LCLError(f"rank 0 at {self.world.address} said nothing for {seconds:g} s")
            time.sleep(poll)

    def close(self) -> None:
        """Fall silent."""
        self._ended.set()

    def _named(self, ranks: Collection[int]) -> str:
        ranks = sorted(ranks)
        nodes = numbers(sorted({rank // self.world.local_size for rank in ranks}), 0)
        plural = "" if nodes.isdecimal() else "s"
        return f"rank{'s'[: len(ranks) > 1]} {numbers(ranks, 0)} (node{plural} {nodes})"

    def _beat(self) -> None:
        """Say every second that this rank is alive."""
        number = 0
        while not self._ended.is_set():
            try:
                self.store.set(f"beat/{self.world.rank}", str(number := number + 1))
                self.store.check([f"beat/{self.world.rank}"])  # waits for an answer, which `set` does not
            except RuntimeError:  # rank 0 has gone, and the main thread says so
                return
            self._heard = time.monotonic()
            self._ended.wait(1)

    def _watch(self) -> None:
        """End the process if the store does not answer any more: its calls have no limit of time."""
        while not self._ended.wait(1):
            if time.monotonic() - self._heard > 2 * SILENCE:
                at = f"{self.world.address}:{self.world.port}"
                print(
                    f"error: rank {self.world.rank} on {self.world.host}: rank 0 at {at} does not answer for "
                    f"{2 * SILENCE:g} s any more; is the network between them cut?",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(2)

    def _is_silent(self, rank: int) -> bool:
        """Whether a rank has beaten and does not any more."""
        last, since = self._beats.get(rank, (b"", 0.0))
        now = time.monotonic()
        beat = self.store.get(f"beat/{rank}") if self.store.check([f"beat/{rank}"]) else b""
        if beat != last:
            self._beats[rank] = (beat, now)
        return bool(last) and beat == last and now - since > SILENCE


def _open(world: World, wait: float) -> TCPStore:
    listens = world.rank == 0 and not world.agent
    try:
        return TCPStore(
            world.address,
            world.port,
            is_master=listens,
            wait_for_workers=False,
            timeout=timedelta(seconds=wait),
        )
    except (RuntimeError, ValueError) as error:
        raise LCLError(_why_not(world, wait, listens, str(error))) from error


def _why_not(world: World, wait: float, listens: bool, text: str) -> str:
    """What to do about a store that cannot be opened."""
    at = f"MASTER_ADDR:MASTER_PORT {world.address}:{world.port}"
    if "EADDRINUSE" in text or "already in use" in text:
        return f"rank 0 on {world.host}: port {world.port} is taken there; set another MASTER_PORT"
    if _address(world.address) is None:
        return f"rank {world.rank} on {world.host}: MASTER_ADDR {world.address!r} is not the name of a host"
    if listens:
        said = one_line(Exception(text), 120)
        return f"rank 0 on {world.host} cannot listen at {at}: is that this host? ({said})"
    return (
        f"rank {world.rank} (node {world.node}, {world.host}) could not reach rank 0 at {at} within {wait:g} "
        "s: did rank 0 start, is that its host, does a firewall keep the port?"
    )


def _address(host: str) -> str | None:
    try:
        return str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError:
        return None


def own_interface(address: str, interfaces: Callable[[], dict[str, Any]]) -> str:
    """Name of the network interface that leads to a host, "" if it cannot be told.

    Args:
        address: The host.
        interfaces: ``psutil.net_if_addrs``.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # sends nothing: the system only looks up the way
            own = probe.getsockname()[0]
        except OSError:
            return ""
    return next((name for name, all_of in interfaces().items() if own in {a.address for a in all_of}), "")
