from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from lcl_composer.preflight.equal import compare, facts
from tests.preflight.plans import plan_of


@pytest.fixture
def nodes(data: Path) -> dict[int, dict[str, Any]]:
    """Four nodes that are equal."""
    one = facts(plan_of(data).composed) | {"gpus": ["H100, 80 GB, sm_90"] * 2}
    return {node: copy.deepcopy(one) for node in range(4)}


def wrong(
    nodes: dict[int, dict[str, Any]], clocks: dict[int, float] | None = None
) -> list[tuple[str, str, str, str]]:
    lines = compare(nodes, clocks or {}, len(nodes))
    return [
        (line.check, line.nodes, line.finding.status, line.finding.message)
        for line in lines
        if line.finding.status != "ok"
    ]


def test_equal_nodes_are_well(nodes: dict[int, dict[str, Any]]) -> None:
    assert wrong(nodes, {1: 0.1, 2: -0.1, 3: 0.0}) == []
    said = {line.check: line.finding.message for line in compare(nodes, {}, 4)}
    assert "torch 2." in said["versions"]
    assert said["GPUs are equal"] == "2 on each node"


@pytest.mark.parametrize("package", ["torch", "mosaicml", "mosaicml-streaming", "transformers", "python"])
def test_another_version_on_a_node(nodes: dict[int, dict[str, Any]], package: str) -> None:
    before = nodes[2]["versions"][package]
    nodes[2]["versions"][package] = "9.9"
    ((check, where, status, said),) = wrong(nodes)
    assert (check, where, status) == ("versions", "2", "fail")
    assert said.startswith(f"{package} is 9.9, elsewhere {before};")


def test_other_code_on_a_node(nodes: dict[int, dict[str, Any]]) -> None:
    nodes[0]["source"] = "another"
    assert [line[:3] for line in wrong(nodes)] == [("source", "0", "fail")]


def test_another_setting_on_a_node(nodes: dict[int, dict[str, Any]]) -> None:
    nodes[1]["settings"]["optimizer.lr"] = nodes[3]["settings"]["optimizer.lr"] = 0.5
    assert wrong(nodes) == [
        (
            "settings",
            "1, 3",
            "fail",
            "optimizer.lr is 0.5, elsewhere 0.001; give all nodes the same YAML and overrides",
        )
    ]


def test_the_cache_may_lie_elsewhere(nodes: dict[int, dict[str, Any]]) -> None:
    nodes[1]["settings"]["data.train.local"] = "/scratch"
    assert [line[:3] for line in wrong(nodes)] == [("settings", "1", "warn")]


def test_other_gpus_on_a_node(nodes: dict[int, dict[str, Any]]) -> None:
    nodes[1]["gpus"] = ["H100, 80 GB, sm_90", "H100, 40 GB, sm_90"]
    nodes[2]["gpus"] = []
    found = wrong(nodes)
    assert ("GPUs are equal", "1", "fail") in [line[:3] for line in found]
    assert any("the number of GPUs is 0, elsewhere 2" in line[3] for line in found)


def test_clocks(nodes: dict[int, dict[str, Any]]) -> None:
    found = wrong(nodes, {1: 5.0, 2: 0.5, 3: -3600.0})
    assert [line[:3] for line in found] == [("clocks", "1", "warn"), ("clocks", "3", "fail")]
    assert "3600.0 s behind node 0" in found[1][3]
