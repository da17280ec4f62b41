from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.jobs import free_port
from lcl_composer.preflight import links
from lcl_composer.preflight.meeting import Meeting
from lcl_composer.preflight.world import World
from tests.distributed import run_ranks


def reduce_on(rank: int, size: int, port: int, corrupt: bool) -> dict[str, Any]:
    """All-reduce as a preflight does; rank 1 may make a mistake."""
    torch.distributed.destroy_process_group()
    world = World(rank=rank, size=size, port=port)
    meeting = Meeting(world, 10)
    if corrupt and rank == 1:
        add = torch.distributed.all_reduce
        links.dist.all_reduce = lambda tensor, **options: add(tensor.mul_(2), **options)  # type: ignore[assignment]
    found = links.reduce(world, ["gloo"], seconds=20)
    meeting.close()
    return found


def test_all_ranks_reduce_and_tell_their_speed() -> None:
    for found in run_ranks(2, reduce_on, free_port(), False):
        assert found["gloo"] > 1e6


def test_a_wrong_sum_is_seen() -> None:
    for found in run_ranks(2, reduce_on, free_port(), True):
        assert found["gloo"] == "the sum is 5, not 3"


def test_a_rank_that_is_away_ends_the_others_in_time() -> None:
    world = World(size=2, port=free_port())
    meeting = Meeting(world, 5)
    begun = time.monotonic()
    assert isinstance(links.reduce(world, ["gloo"], seconds=1)["gloo"], str)
    assert time.monotonic() - begun < 10
    meeting.close()


def judged(values: list[Any], gradients: int = 10**9) -> dict[str, Any]:
    first = World(size=len(values), port=free_port())
    meetings = [Meeting(replace(first, rank=rank), 5) for rank in range(len(values))]
    for meeting, value in zip(meetings, values, strict=True):
        if value is not None:
            threading.Thread(target=meeting.put, args=("links", {"gloo": value})).start()
    found = links.links(meetings[0], ["gloo"], gradients, seconds=-14)  # a second for all
    for meeting in meetings:
        meeting.close()
    return {name: (finding.status, finding.message) for name, finding in found.items()}


def test_the_slowest_rank_counts() -> None:
    """2 (n - 1) / n of the gradients cross a link: 1.5 GB at 6 GB/s for 1 GB of gradients and 4 ranks."""
    status, said = judged([9e9, 6e9, 7e9, 8e9])["all-reduce, gloo"]
    assert (status, said) == ("ok", "6 GB/s over 4 ranks; 1 GB of gradients take 0.25 s a step")
    assert judged([9e9, 6e8])["all-reduce, gloo"][0] == "warn"


def test_a_rank_that_failed_or_is_missing_is_named() -> None:
    status, said = judged([9e9, "connection refused"])["all-reduce, gloo"]
    assert (status, "rank 1: connection refused" in said, "GLOO_SOCKET_IFNAME=lo" in said) == (
        "fail",
        True,
        True,
    )
    status, said = judged([9e9, 9e9, None])["all-reduce"]
    assert (status, "rank 2 (node 2) did not come" in said) == ("fail", True)


def test_one_process_reduces_nothing() -> None:
    assert links.links(Meeting(World(), 1), ["gloo"], 0)["all-reduce"].status == "ok"
