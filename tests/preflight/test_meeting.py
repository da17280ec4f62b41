from __future__ import annotations

import os
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import psutil
import pytest

from benchmarks.jobs import free_port
from lcl_composer.errors import LCLError
from lcl_composer.preflight import meeting
from lcl_composer.preflight.meeting import Absent, Meeting, own_interface
from lcl_composer.preflight.world import World
from tests.forked import Forked


@pytest.fixture
def worlds() -> list[World]:
    """Three nodes of two ranks."""
    first = World(size=6, local_size=2, port=free_port(), host="here")
    return [replace(first, rank=rank, local_rank=rank % 2, node=rank // 2) for rank in range(6)]


def test_ranks_hear_one_another(worlds: list[World]) -> None:
    zero, one = Meeting(worlds[0], 5), Meeting(worlds[1], 5)
    threading.Timer(0.2, lambda: one.put("node", {"free": 3})).start()
    zero.put("node", {"free": 4})
    assert zero.gather("node", [0, 1], 5) == {0: {"free": 4}, 1: {"free": 3}}
    threading.Timer(0.2, lambda: zero.say("verdict", 1)).start()
    assert one.hear("verdict", 5) == 1
    for each in (zero, one):
        each.close()


def test_who_does_not_come_is_named_in_time(worlds: list[World]) -> None:
    zero, two = Meeting(worlds[0], 5), Meeting(worlds[2], 5)
    two.put("here", "host")
    begun = time.monotonic()
    with pytest.raises(Absent, match=r"ranks 3-5 \(nodes 1-2\) did not come within 0.5 s") as raised:
        zero.gather("here", [2, 3, 4, 5], 0.5)
    assert raised.value.ranks == [3, 4, 5]
    assert time.monotonic() - begun < 3
    for each in (zero, two):
        each.close()


def test_who_falls_silent_is_named_long_before_the_end(worlds: list[World]) -> None:
    with mock.patch.object(meeting, "SILENCE", 1.5):
        zero, five = Meeting(worlds[0], 5), Meeting(worlds[5], 5)
        five.put("here", "host")
        zero.gather("here", [5], 5)
        threading.Timer(1.2, five.close).start()  # as if it were killed
        with pytest.raises(Absent, match=r"rank 5 \(node 2\) came and fell silent"):
            zero.gather("node", [5], 60)
    zero.close()


def test_a_rank_that_works_for_long_is_not_silent(worlds: list[World]) -> None:
    with mock.patch.object(meeting, "SILENCE", 1.5):
        zero, five = Meeting(worlds[0], 5), Meeting(worlds[5], 5)
        threading.Timer(4, lambda: five.put("node", 1)).start()
        assert zero.gather("node", [5], 60) == {5: 1}
    for each in (zero, five):
        each.close()


def test_a_port_that_is_taken(worlds: list[World]) -> None:
    with socket.socket() as other:
        other.bind(("", worlds[0].port))
        other.listen()
        with pytest.raises(LCLError, match=f"port {worlds[0].port} is taken there; set another MASTER_PORT"):
            Meeting(worlds[0], 1)


def test_rank_0_that_cannot_be_reached(worlds: list[World]) -> None:
    with pytest.raises(LCLError, match=r"rank 3 \(node 1, here\) could not reach rank 0 .* within 1 s"):
        Meeting(worlds[3], 1)
    with pytest.raises(LCLError, match=r"'no-such-host' is not the name of a host"):
        Meeting(replace(worlds[3], address="no-such-host"), 1)


def test_rank_0_that_says_nothing(worlds: list[World]) -> None:
    zero, one = Meeting(worlds[0], 5), Meeting(worlds[1], 5)
    with pytest.raises(LCLError, match=r"said nothing for 0\.2 s"):
        one.hear("verdict", 0.2)
    for each in (zero, one):
        each.close()


def test_the_interface_to_a_host() -> None:
    assert own_interface("127.0.0.1", psutil.net_if_addrs) == "lo"


def lose_rank_0(port: int) -> None:
    """Rank 1 of a job whose rank 0 takes connections and does not answer any more."""
    meeting.SILENCE = 0.5
    Meeting(World(rank=1, size=2, node=1, port=port, host="here"), 20)
    time.sleep(60)


def test_a_rank_whose_network_is_cut_ends_in_time(tmp_path: Path) -> None:
    server = World(size=2, port=free_port())
    zero = Forked(tmp_path, serve_and_stop, server.port)
    one = Forked(tmp_path, lose_rank_0, server.port)
    code, output = one.finish(30)
    zero.kill()
    assert code == 2
    assert "rank 0 at 127.0.0.1" in output
    assert "does not answer for 1 s any more" in output


def serve_and_stop(port: int) -> None:
    """Rank 0, stopped once rank 1 has beaten: its connections stay open, and nothing comes back."""
    zero = Meeting(World(size=2, port=port), 20)
    while not zero.store.check(["beat/1"]):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGSTOP)
