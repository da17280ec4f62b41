from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import Result, Step, rows, run, tables

PRINTED = """a heading

| way | error | forward, ms |
|---|---|---|
| nested | 3e-07 | 1.25 |
| flex | 4e-07 | 2.50 |

### another

| a | b |
|--|--|
| 1 | 2 |
"""
STEP = Step("attention", "attention.py", "", "", 60)


def test_tables_are_found_in_what_was_printed():
    found = list(tables(PRINTED))
    assert [cells for _, cells in found] == [
        ["nested", "3e-07", "1.25"],
        ["flex", "4e-07", "2.50"],
        ["1", "2"],
    ]
    assert [header[0] for header, _ in found] == ["way", "way", "a"]


def test_a_row_says_what_was_done_and_what_it_took():
    done = Result("ok", PRINTED)
    assert rows(STEP, done, dry_run=False)[0] == "| attention | way nested, error 3e-07 | forward, ms 1.25 |"
    assert all(row.endswith("| not measured |") for row in rows(STEP, done, dry_run=True))


def test_a_failed_step_has_a_row_too():
    assert rows(STEP, Result("exit status 1", "Traceback"), dry_run=False) == [
        "| attention | exit status 1 | not measured |"
    ]


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("print('| a |')", "ok"),
        ("raise SystemExit(3)", "exit status 3"),
        ("import time; print('| a |', flush=True); time.sleep(60)", "stopped after 3 s"),
    ],
)
def test_a_step_ends_and_leaves_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, status: str
):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "try.py").write_text(program)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "DRY_PATIENCE", 1)
    result = run(Step("a try", "try.py", "", "", 3), dry_run=True, folder=tmp_path)
    assert result.status == status
    assert (tmp_path / "a_try.log").read_text() == result.output
    assert ("| a |" in result.output) == ("3" not in status or "stopped" in status)


def test_all_steps_fit_into_one_call_of_ten_minutes():
    assert sum(step.limit for step in gpu.STEPS) <= 580


def test_every_step_names_a_benchmark():
    assert [s.name for s in gpu.STEPS if not (gpu.ROOT / "benchmarks" / s.script).is_file()] == []
