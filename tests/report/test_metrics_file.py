from __future__ import annotations

import math
from pathlib import Path

from lcl_composer.report.metrics_file import cut_after, format_line, read_metrics, series


def write(path: Path, *steps: int) -> None:
    path.write_text("".join(format_line(step, {"loss": float(step)}) for step in steps))


def test_lines_of_one_step_are_one_row(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(
        format_line(1, {"loss": 2.0}) + format_line(1, {"recall": 0.5}) + format_line(2, {"loss": 1.0})
    )
    assert read_metrics(path) == [{"step": 1, "loss": 2.0, "recall": 0.5}, {"step": 2, "loss": 1.0}]


def test_an_absent_file_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none") == []
    assert cut_after(tmp_path / "none", 3) == 0


def test_a_series_skips_steps_without_the_metric_and_reads_null_as_nan() -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 2}, {"step": 3, "loss": None}]
    steps, values = series(rows, "loss")
    assert steps == [1, 3]
    assert values[0] == 2.0
    assert math.isnan(values[1])


def test_cutting_keeps_what_is_done_and_leaves_no_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, 1, 2, 3, 4)
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert cut_after(path, 2) == 2
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    assert path.read_text().endswith("\n")
    assert list(tmp_path.iterdir()) == [path]


def test_a_fresh_start_in_an_old_folder_empties_the_file(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", 1, 2)
    assert cut_after(tmp_path / "m.jsonl", 0) == 2
    assert (tmp_path / "m.jsonl").read_text() == ""
