"""``metrics.jsonl``: one line a batch, read and cut by step."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lcl_composer.json_data import load_json


def format_line(step: int, values: Mapping[str, Any]) -> str:
    """One line of strict JSON: ``step`` first, then the values; one that is not finite is ``null``."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps({"step": step, **clean}) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows in order of their steps, lines of one step merged (evaluations follow their batch).

    A last line that a killed run left half written is passed over. An absent file has no rows.
    """
    rows: dict[int, dict[str, Any]] = {}
    for row in _parsed_lines(path):
        rows.setdefault(row["step"], {}).update(row)
    return [rows[step] for step in sorted(rows)]


def last_step(path: Path) -> int:
    """The step of the last whole line; 0 where there is none. Only the end of the file is read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (1 << 16)))
            rows = [*_parsed(file.read().decode(errors="replace").splitlines())]
    except OSError:
        return 0
    return rows[-1]["step"] if rows else 0


def series(rows: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, where it was logged; ``null`` becomes NaN."""
    points = [(row["step"], row[key]) for row in rows if key in row]
    return [step for step, _ in points], [math.nan if v is None else float(v) for _, v in points]


def cut_after(path: Path, step: int) -> int:
    """Drop the lines beyond ``step``, and a half-written one, so that a resumed run continues the file.

    The new file replaces the old one in one move: a kill in between leaves one or the other whole.

    Returns:
        How many lines were dropped.
    """
    if not path.exists():
        return 0
    rows = list(_parsed_lines(path))
    kept = [row for row in rows if row["step"] <= step]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
    os.replace(partial, path)
    return len(rows) - len(kept)


def _parsed_lines(path: Path) -> list[dict[str, Any]]:
    return list(_parsed(path.read_text(errors="replace").splitlines())) if path.exists() else []


def _parsed(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            row = load_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and type(row.get("step")) is int and abs(row["step"]) < 1 << 63:
            yield row
