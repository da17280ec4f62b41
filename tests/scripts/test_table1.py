"""Table 1's numbers, from run folders to Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lcl_composer.report.metrics_file import format_line
from scripts.table1 import add_runs, table

REPOSITORY = Path(__file__).parents[2]


def write_run(runs: Path, name: str, probe: float, finished: bool = True, **summary: Any) -> None:
    folder = runs / name
    folder.mkdir(parents=True, exist_ok=True)
    summary |= {"documents": 64, "seconds": 1.5, "probe": {"trained": probe, "chance": 0.1}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text(format_line(1, {"knn/accuracy": 0.1}))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(format_line(2, {"knn/accuracy": 0.25}))
    if finished:
        (folder / "finished.json").write_text("{}")


def test_seeds_are_averaged_and_older_numbers_kept(tmp_path: Path):
    retrieval = {"text_to_image/recall@1": 0.5, "image_to_text/recall@1": 0.25, "candidates": 149}
    write_run(tmp_path, "real_lcl-s17", 0.4, retrieval=retrieval)
    write_run(tmp_path, "real_clip-s17", 0.3, finished=False)
    write_run(tmp_path, "demo", 0.9)
    first = add_runs({}, tmp_path)
    assert first.keys() == {"real_lcl-s17"}
    assert first["real_lcl-s17"]["knn"] == 0.25
    (tmp_path / "real_lcl-s17/finished.json").unlink()
    write_run(tmp_path, "real_lcl-s18", 0.5)
    write_run(tmp_path, "shapes_masked-s18", 0.2)
    write_run(tmp_path, "real-classify_emoji-real_lcl-s18-0123abcd-s17", 0.0, classification={"top1": 0.3})
    captioning = {"CIDEr": 0.25, "chance/CIDEr": 0.23}
    write_run(tmp_path, "real-caption-real_lcl-s18-0123abcd-s17", 0.0, captioning=captioning)
    lines = table(add_runs(first, tmp_path)).splitlines()
    assert lines[2:] == [
        "| BEiT-3, masked text | 73.3 |  |  |  |  |  | 20.0 | 25.0 |  |",
        "| **LCL** | 75.2 | 45.0 ± 7.1 | 25.0 ± 0.0 | 30.0 | 2.0 | 50.0 |  |  |  |",
    ]


def test_the_readme_shows_the_numbers_that_are_committed():
    numbers = json.loads((REPOSITORY / "docs/table1.json").read_text())
    assert table(numbers) in (REPOSITORY / "README.md").read_text()
