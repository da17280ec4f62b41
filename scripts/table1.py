#!/usr/bin/env python
"""Table 1 in miniature: adds finished runs of `make table1` to a file of numbers and prints it as a table.

    python scripts/table1.py runs docs/table1.json

The file keeps the numbers of runs whose folders are gone, so that seeds can be trained one at a time and on
several machines; a run that is there stands in place of its older numbers. Means are over the seeds, with the
standard deviation (``n - 1``) where there are two or more.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lcl_composer.report.metrics_file import read_metrics

#: Rows in the order of the paper's Table 1 with its top-1 of ImageNet-1k by frozen transfer, in percent.
PAPER = {
    "clip": ("CLIP", 74.8),
    "coca": ("CoCa", 75.4),
    "blip2": ("BLIP-2", 74.5),
    "masked": ("BEiT-3, masked text", 73.3),
    "generation": ("generation", 24.0),
    "emu": ("Emu", 5.7),
    "lcl": ("**LCL**", 75.2),
    "flamingo": ("Flamingo", None),
    "siglip": ("SigLIP", None),
    "untrained": ("untrained", None),
}

#: Columns: data, number, head.
COLUMNS = (
    ("real", "probe", "real: probe"),
    ("real", "knn", "k-NN"),
    ("real", "attention", "another artist's"),
    ("real", "captions", "captions"),
    ("real", "text_to_image", "R@1"),
    ("shapes", "probe", "generated: probe"),
    ("shapes", "knn", "k-NN"),
    ("shapes", "text_to_image", "R@1"),
)

#: Columns of frozen transfer: the task, its evaluation, and which of its numbers, less another one.
_TRANSFER = {
    "attention": ("real-classify_emoji", "classification", "top1", None),
    "captions": ("real-caption", "captioning", "CIDEr", "chance/CIDEr"),
}

Numbers = dict[str, dict[str, Any]]


def read_numbers(run: Path) -> dict[str, Any] | None:
    """Return a run's numbers, shares from 0 to 1, with those of transfer tasks that have run on its encoder.

    None if it is not finished.
    """
    if not (run / "finished.json").is_file():
        return None
    summary = json.loads((run / "summary.json").read_text())
    retrieval, probe = summary.get("retrieval") or {}, summary["probe"]
    rows = read_metrics(run / "metrics.jsonl")
    return {
        "documents": summary["documents"],
        "seconds": round(summary["seconds"]),
        "probe": probe["trained"],
        "probe_chance": probe["chance"],
        "knn": next(row["knn/accuracy"] for row in reversed(rows) if "knn/accuracy" in row),
        **{name: _transferred(run, *task) for name, task in _TRANSFER.items()},
        "text_to_image": retrieval.get("text_to_image/recall@1"),
        "image_to_text": retrieval.get("image_to_text/recall@1"),
        "candidates": retrieval.get("candidates"),
    }


def _transferred(run: Path, task: str, evaluation: str, name: str, less: str | None) -> float | None:
    """A number of the newest run of a task on a run's encoder, below the same folder; None without one."""
    found = run.parent.glob(f"{task}-{run.name}-*/summary.json")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        return None
    numbers = json.loads(newest.read_text())[evaluation]
    return numbers[name] - (numbers[less] if less else 0)


def add_runs(numbers: Numbers, runs: Path) -> Numbers:
    """Return the numbers with those of the finished runs ``DATA_METHOD-sSEED`` below ``runs``."""
    found = dict(numbers)
    for run in sorted(runs.iterdir()):
        row = re.fullmatch(rf"(real|shapes)_({'|'.join(PAPER)})-s\d+", run.name)
        if row and (measured := read_numbers(run)):
            found[run.name] = measured
    return dict(sorted(found.items()))


def table(numbers: Numbers) -> str:
    """Return the numbers as a Markdown table, percent; rows without any are left out."""
    heads = ["method", "paper: ImageNet top-1", *(head for *_, head in COLUMNS)]
    lines = [heads, ["---"] * len(heads)]
    for method, (label, paper) in PAPER.items():
        cells = [_cell(numbers, f"{data}_{method}", key) for data, key, _ in COLUMNS]
        if any(cells):
            lines.append([label, "" if paper is None else str(paper), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(numbers: Numbers, row: str, key: str) -> str:
    found = [run[key] for name, run in numbers.items() if name.rpartition("-s")[0] == row]
    values = [100 * value for value in found if value is not None]
    if not values:
        return ""
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("runs", type=Path, help="folder of run folders")
    parser.add_argument("numbers", type=Path, help="JSON that is read if it is there, and written")
    arguments = parser.parse_args()
    before = json.loads(arguments.numbers.read_text()) if arguments.numbers.is_file() else {}
    now = add_runs(before, arguments.runs)
    arguments.numbers.write_text(json.dumps(now, indent=1) + "\n")
    print(table(now))
