"""What a suite found: the runs of several encoders on several tasks, as one JSON file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lcl_composer.errors import DataError
from lcl_composer.evaluation.outcomes import COVERED, RESAMPLES, SEED, Outcomes, intervals, read_outcomes
from lcl_composer.report.environment import git_state, package_versions
from lcl_composer.report.run import Run, read_run

#: Settings that are the encoder's, the run's or the seed's, not the task's.
_NOT_THE_TASKS = {
    "model.encoder",
    "data.image_size",
    "run_name",
    "save_folder",
    "seed",
    "data.train.shuffle_seed",
}


@dataclass
class Entry:
    """A run of a suite.

    Attributes:
        encoder: The encoder's label.
        task: The task's name.
        run: Its folder, as read.
        outcomes: What its evaluations found, image by image, by the evaluation's name.
        intervals: Where each of their numbers would lie on other images, by ``evaluation/number``.
    """

    encoder: str
    task: str
    run: Run
    outcomes: dict[str, Outcomes] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """What was measured, by the evaluation's name."""
        named = self.run.config.get("evaluation") or {}
        return {name: self.run.summary[name] for name in named if name in self.run.summary}

    @property
    def numbers(self) -> dict[str, float]:
        """All numbers that were measured, by ``evaluation/number``."""
        return {
            f"{name}/{key}": float(value)
            for name, result in self.evaluations.items()
            for key, value in result.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }


def read_entry(encoder: str, task: str, folder: Path) -> Entry:
    """Read a finished run; what is damaged in it is left out, with a note on the page.

    Raises:
        DataError: If it is no run folder.
    """
    entry = Entry(encoder, task, read_run(folder, folder.name))
    for name in entry.evaluations:
        try:
            outcomes = read_outcomes(folder, name)
        except DataError as error:
            entry.run.notes.append(str(error))
            continue
        if outcomes is not None:
            entry.outcomes[name] = outcomes
            entry.intervals |= {f"{name}/{key}": ends for key, ends in intervals(outcomes).items()}
    return entry


def results_of(
    entries: Sequence[Entry], encoders: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """All that was found, and what it was found with, as JSON values.

    Args:
        entries: The finished runs.
        encoders: Label, settings and digest of each encoder.
        failures: Encoder, task, run and reason of what came to nothing.
    """
    return {
        **provenance(),
        "intervals": {
            "covers": COVERED,
            "by": f"percentile bootstrap over test images, {RESAMPLES} draws of seed {SEED}",
        },
        "seeds": sorted({entry.run.seed for entry in entries if entry.run.seed is not None}),
        "encoders": [dict(encoder) for encoder in encoders],
        "protocol": dict(_protocols(entries)),
        "results": [_result(entry) for entry in entries],
        "failures": [dict(failure) for failure in failures],
    }


def provenance() -> dict[str, Any]:
    """When and by which versions something was found, as JSON values."""
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": package_versions(),
        "source": git_state()[0],
    }


def _protocols(entries: Sequence[Entry]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The settings of each task, without what is the encoder's."""
    for entry in {entry.task: entry for entry in reversed(entries)}.values():
        yield entry.task, _without(entry.run.config, "")


def _without(settings: dict[str, Any], above: str) -> dict[str, Any]:
    return {
        name: _without(value, f"{above}{name}.") if isinstance(value, dict) else value
        for name, value in settings.items()
        if f"{above}{name}" not in _NOT_THE_TASKS
    }


def _result(entry: Entry) -> dict[str, Any]:
    summary = entry.run.summary
    return {
        "encoder": entry.encoder,
        "task": entry.task,
        "seed": entry.run.seed,
        "run": str(entry.run.folder),
        "features": summary.get("features"),
        "batches": summary.get("batches"),
        "documents": summary.get("documents"),
        "seconds": summary.get("seconds"),
        "numbers": entry.numbers,
        "intervals": {name: list(ends) for name, ends in entry.intervals.items()},
    }
