from __future__ import annotations

import os

import pytest
import torch.distributed
from composer.utils import dist

from lcl_composer.errors import LCLError
from lcl_composer.nodes import name_signal_files_by_node, on_first_of_node
from tests.algorithms.training import as_launched
from tests.distributed import run_ranks


def test_nodes_have_signal_files_of_their_own(monkeypatch: pytest.MonkeyPatch):
    """Both nodes get the name that rank 0 broadcasts."""
    monkeypatch.setattr(dist, "get_node_signal_file_name", dist.get_node_signal_file_name)
    monkeypatch.setattr(
        dist, "broadcast_object_list", lambda names, src: names.__setitem__(0, "._from_rank0")
    )
    name_signal_files_by_node()
    name_signal_files_by_node()
    names = []
    for node in ("0", "1"):
        monkeypatch.setenv("NODE_RANK", node)
        names.append(dist.get_node_signal_file_name())
    assert names == ["._from_rank0_of_node0", "._from_rank0_of_node1"]


def test_torchruns_number_of_the_node_is_composers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dist, "get_node_signal_file_name", dist.get_node_signal_file_name)
    monkeypatch.setenv("NODE_RANK", "to be put back")
    monkeypatch.delenv("NODE_RANK")
    monkeypatch.setenv("GROUP_RANK", "3")
    name_signal_files_by_node()
    assert os.environ["NODE_RANK"] == "3"


def asked_on_a_rank(rank: int, ranks: int, ranks_per_node: int) -> list[str]:
    """What the first rank of its node says, and what comes of an error on the last node."""
    as_launched(rank, ranks)
    os.environ["LOCAL_RANK"] = str(rank % ranks_per_node)

    def fail() -> None:
        if rank == ranks - ranks_per_node:
            raise LCLError(f"rank {rank} cannot")

    answer = on_first_of_node(lambda: f"rank {rank}")
    try:
        on_first_of_node(fail)
    except LCLError as error:
        return [answer, str(error)]
    return [answer]


@pytest.mark.world_size(2)
def test_the_first_rank_of_a_node_answers_for_it():
    assert run_ranks(2, asked_on_a_rank, 2) == [["rank 0", "rank 0 cannot"]] * 2
    assert run_ranks(2, asked_on_a_rank, 1) == [["rank 0", "rank 1 cannot"], ["rank 1", "rank 1 cannot"]]


def test_a_command_in_the_pod_of_a_rank_is_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)  # another test's is left
    assert on_first_of_node(lambda: "mine") == "mine"
