from __future__ import annotations

import os

import pytest
from composer.utils import dist

from lcl_composer.nodes import name_signal_files_by_node


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
