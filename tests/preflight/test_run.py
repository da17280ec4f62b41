"""Whole preflights: ranks started as a launcher does, with what a script sees of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.jobs import free_port
from lcl_composer.errors import DataError
from lcl_composer.preflight import run
from lcl_composer.preflight.finding import Finding, fail, ok
from lcl_composer.preflight.plan import Plan
from tests import runs
from tests.forked import Forked, module, ranks_of
from tests.preflight.plans import plan_of

MAIN = runs.ROOT / "lcl_composer/__main__.py"


@pytest.fixture
def experiment(data: Path, tmp_path: Path) -> Path:
    return runs.write_yaml(tmp_path, runs.settings(data))


def rows(output: str) -> dict[str, tuple[str, str]]:
    """Check to nodes and status."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    return {row[0]: (row[1], row[2]) for row in cells if row[0]}  # a long line goes on below


def test_alone_in_one_process(tmp_path: Path, experiment: Path) -> None:
    code, output = Forked(tmp_path, module, "lcl_composer", "check", "--preflight", str(experiment)).finish()
    assert code == 0, output
    found = rows(output)
    assert len(found) == 15
    assert {status for _, status in found.values()} <= {"ok", "warn"}
    assert output.splitlines()[-1].startswith("preflight: ")
    assert not (tmp_path / "runs").exists()


def test_what_stops_several_checks_is_said_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(plan: Plan) -> Finding:
        raise DataError("no such encoder")

    monkeypatch.setattr(run, "CHECKS", {"memory": broken, "files": lambda plan: ok("many"), "disk": broken})
    found: dict[str, Finding] = {}
    run._check_all(plan_of(data), found)
    assert found == {
        "memory": fail("no such encoder"),
        "files": ok("many"),
        "disk": fail("cannot be told before memory is mended"),
    }


def one_rank(rank: int, size: int, port: int, *arguments: str) -> None:
    """A rank that is alone on its node."""
    world = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": "1", "NODE_RANK": str(rank)}
    os.environ.update(world, RANK=str(rank), LOCAL_RANK="0", MASTER_PORT=str(port))
    os.environ["MASTER_ADDR"] = os.uname().nodename
    module("lcl_composer", "check", "--preflight", *arguments)


def preflight(folder: Path, *arguments: str, ranks: int = 2, size: int = 2) -> list[tuple[int | None, str]]:
    """Exit code and output of each of ``ranks`` nodes of a job of ``size``."""
    port = free_port()
    started = [Forked(folder, one_rank, rank, size, port, *arguments) for rank in range(ranks)]
    return [rank.finish(60) for rank in started]


def test_two_nodes_meet_and_reduce(tmp_path: Path, experiment: Path) -> None:
    (code, output), (other_code, other) = preflight(tmp_path, str(experiment))
    assert (code, other_code) == (0, 0), output + other
    found = rows(output)
    assert found["all-reduce, gloo"] == ("all", "ok")
    assert found["clocks"] == ("1", "ok")
    assert "Preflight" not in other


def test_under_a_launcher(tmp_path: Path, experiment: Path) -> None:
    arguments = ("check", "--preflight", str(experiment))
    code, output = Forked(tmp_path, ranks_of, 2, MAIN, *arguments).finish()
    assert code == 0, output
    assert rows(output)["all-reduce, gloo"] == ("all", "ok")


def test_a_fault_gives_all_ranks_another_exit_code(tmp_path: Path, experiment: Path) -> None:
    ends = preflight(tmp_path, str(experiment), "save_folder=experiment.yaml/checkpoints")
    assert [code for code, _ in ends] == [1, 1]
    assert rows(ends[0][1])["write access"] == ("all", "fail")
    assert "preflight: 1 to mend" in ends[0][1]


def test_a_rank_that_never_starts_is_named_on_one_line(tmp_path: Path, experiment: Path) -> None:
    ends = preflight(tmp_path, str(experiment), "--wait", "4", ranks=2, size=3)
    assert [code for code, _ in ends] == [2, 2]
    assert ends[0][1].splitlines()[-1] == "error: rank 2 (node 2) did not come within 4 s"


def test_a_yaml_that_is_wrong_ends_all_ranks(tmp_path: Path, experiment: Path) -> None:
    ends = preflight(tmp_path, str(experiment), "lrr=1")
    assert [code for code, _ in ends] == [1, 1]
    assert "lrr: unknown key" in ends[0][1]
    assert "Traceback" not in ends[0][1] + ends[1][1]
