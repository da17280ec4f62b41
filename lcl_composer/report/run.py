"""A run folder as it is found: read without torch, and whatever is missing or damaged is said, not raised."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from yaml import YAMLError

from lcl_composer.config.core_schema import parse_yaml
from lcl_composer.errors import DataError, did_you_mean, one_line
from lcl_composer.json_data import load_json
from lcl_composer.links import leads_out
from lcl_composer.report.metrics_file import read_metrics, series

_LARGEST = 1e300
#: What each line of metrics counts.
_COUNTERS = {"step", "epoch", "sample", "token", "seconds"}
_MARKS = ("config.yaml", "metrics.jsonl", "summary.json", "environment.json")


@dataclass
class Run:
    """What a run folder holds.

    Attributes:
        name: Label on the page: the folder's name, with its parent's where two runs share it.
        folder: The run folder.
        config: Resolved settings; empty if the file is missing or damaged.
        rows: Lines of ``metrics.jsonl``, one a batch.
        summary: ``summary.json`` if it is that of the last batch; empty otherwise.
        environment: ``environment.json`` of the latest launch, with ``code.patch`` in short.
        gallery: ``gallery.json``, empty if the run has none.
        launches: Times it was started.
        notes: What is missing, damaged or unusual, a sentence each.
    """

    name: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    gallery: dict[str, Any] = field(default_factory=dict)
    launches: int = 1
    notes: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether the run was measured at its end, and did not go on after that."""
        return bool(self.summary)

    @property
    def seed(self) -> Any:
        """The run's seed, None where the config is missing."""
        return self.config.get("seed")

    @cached_property
    def last(self) -> dict[str, Any]:
        """Counters of the last batch: ``step``, ``epoch``, ``sample``, ``token``, ``seconds``."""
        return self.rows[-1] if self.rows else {"step": 0}

    @cached_property
    def keys(self) -> list[str]:
        """Names of the logged metrics, sorted."""
        return sorted({key for row in self.rows for key in row} - _COUNTERS)

    def values(self, key: str) -> list[float]:
        """The values of a metric in order; NaN where it was not finite."""
        return series(self.rows, key)[1]

    @cached_property
    def attention_maps(self) -> list[Path]:
        """The attention maps in order of their batches."""
        maps = sorted((self.folder / "attention_maps").glob("*.png"))
        return [path for path in maps if not leads_out(path, self.folder)]

    def has(self, name: str) -> bool:
        """Whether it has a file; one that is a link out of the folder is not read, with a note."""
        if not (path := self.folder / name).is_file():
            return False
        if leads_out(path, self.folder):
            self.notes.append(f"{name} is a link out of the run folder and left out")
            return False
        return True


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Read each folder.

    Raises:
        DataError: If one is no run folder, or is named twice.
    """
    folders = list(folders)
    places = [folder.resolve() for folder in folders]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise DataError(f"report: {folders[number]} is named twice")
    names = [place.name for place in places]
    labels = [
        place.name if names.count(place.name) == 1 else f"{place.parent.name}/{place.name}"
        for place in places
    ]
    for number, label in enumerate(labels):
        if labels.count(label) > 1:
            labels[number] = str(places[number])
    return [read_run(folder, label) for folder, label in zip(folders, labels, strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Read a run folder.

    Args:
        folder: ``runs/NAME``.
        name: Label on the page.

    Raises:
        DataError: If it is no folder, or holds none of a run's files.
    """
    _check(folder)
    run = Run(name, folder)
    run.config = _read(run, "config.yaml")
    run.environment = _read(run, "environment.json")
    run.summary = _read(run, "summary.json", needed=False)
    run.gallery = _read(run, "gallery.json", needed=False)
    if run.has("metrics.jsonl"):
        run.rows = [_numbers(row) for row in read_metrics(folder / "metrics.jsonl")]
    else:
        run.notes.append("metrics.jsonl is missing, so there are no curves")
    if run.has("code.patch"):
        data = (folder / "code.patch").read_bytes()
        digest = hashlib.sha256(data).hexdigest()[:8]
        run.environment["code.patch"] = f"{len(data.splitlines()):,} lines ({digest})"
    run.launches = 1 + len(list((folder / "launches").glob("*")))
    _note_progress(run)
    return run


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(
            f"report: {folder}: {'is a file' if folder.exists() else 'no such folder'}; {_hint(folder)}"
        )
    if not any((folder / name).is_file() for name in _MARKS):
        raise DataError(f"report: {folder}: not a run folder, it has none of {', '.join(_MARKS)}")


def _hint(folder: Path) -> str:
    """What the user may have meant."""
    if (Path("runs") / folder).is_dir():
        return f"did you mean {Path('runs') / folder}?"
    runs = [path.parent.name for path in folder.parent.glob("*/config.yaml")]
    return did_you_mean(folder.name, runs) if runs else "give run folders, runs/NAME"


def _read(run: Run, name: str, needed: bool = True) -> dict[str, Any]:
    """A YAML or JSON mapping; empty, with a note, where it cannot be had."""
    path = run.folder / name
    if not run.has(name):
        run.notes += [f"{name} is missing"] if needed else []
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        found = parse_yaml(text) if path.suffix == ".yaml" else load_json(text)
        if not isinstance(found, dict):
            raise ValueError("it holds no mapping")
        return found
    except (OSError, ValueError, YAMLError) as error:
        run.notes.append(f"{name} cannot be read: {one_line(error)}")
        return {}


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics without what is no number: a chart has no place for it."""
    kept = {k: v for k, v in row.items() if is_number(v) or (v is None and k not in _COUNTERS)}
    return {"step": row["step"], **kept}


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a chart has a place for it: ``NaN`` and whole numbers beyond any float are none."""
    return isinstance(value, int | float) and abs(value) < _LARGEST


def _note_progress(run: Run) -> None:
    """Say whether the run came to its end; a summary that training has passed is set aside."""
    step = run.last["step"]
    planned = run.config.get("max_duration")
    of = f" of {planned}" if planned else ""
    if run.summary and type(run.summary.get("batches", step)) is not int:
        run.notes.append("summary.json is damaged and left out")
        run.summary = run.gallery = {}
    if run.summary and step > run.summary.get("batches", step):
        run.notes.append(
            f"training went on after summary.json (batch {run.summary['batches']:,}) to batch {step:,}"
        )
        run.summary = run.gallery = {}
    if not run.finished:
        where = f"batch {step:,}, epoch {run.last.get('epoch', 0)}{of}" if run.rows else f"before batch 1{of}"
        run.notes.append(f"unfinished: its metrics end at {where}; its last values are not final")
    if run.rows and (first := run.rows[0]["step"]) > 1:
        run.notes.append(
            f"its metrics begin at batch {first:,}: curves, and losses at the start, lack those before"
        )
    if run.launches > 1:
        run.notes.append(f"launched {run.launches} times; settings and environment are the latest launch's")
    losses = [key for key in run.keys if key.startswith("loss/train/")]
    bad = [row["step"] for row in run.rows if any(key in row and row[key] is None for key in losses)]
    if bad:
        run.notes.append(f"the training loss is not finite from batch {bad[0]:,} ({len(bad):,} batches)")
