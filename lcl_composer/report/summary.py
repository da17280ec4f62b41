"""The table at the end of a run, and the facts under it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lcl_composer.errors import printable
from lcl_composer.evaluation.evaluation import Evaluation, Row
from lcl_composer.report.metrics_file import series

_PREFIX = "loss/train/"


def loss_ends(rows: list[dict[str, Any]], few: int = 5) -> dict[str, dict[str, float]]:
    """Mean of the first and of the last ``few`` logged values of each training loss.

    Args:
        rows: What :func:`lcl_composer.report.metrics_file.read_metrics` returns.
        few: Steps a mean; never more than half of them.

    Returns:
        ``{"contrastive": {"start": nats, "end": nats}, ...}`` for the losses that were logged.
    """
    logged = dict.fromkeys(key for row in rows for key in row if key.startswith(_PREFIX))
    ends = {}
    for key in sorted(logged, key=lambda k: k == f"{_PREFIX}total"):  # the total stands last
        _, values = series(rows, key)
        if values:
            few_here = max(1, min(few, len(values) // 2))
            first, last = values[:few_here], values[-few_here:]
            ends[key.removeprefix(_PREFIX)] = {"start": sum(first) / few_here, "end": sum(last) / few_here}
    return ends


def write_summary(summary: dict[str, Any], path: Path) -> None:
    """Write the facts as strict JSON (a number that is not finite becomes ``null``)."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(v) for key, v in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(finite(summary), indent=2) + "\n")


def _loss_rows(losses: dict[str, dict[str, float]]) -> list[Row]:
    return [
        Row(
            f"{name.capitalize()} loss",
            f"{v['start']:.3f} at the start",
            f"{v['end']:.3f}",
            f"{v['end'] - v['start']:+.3f}",
        )
        for name, v in losses.items()
    ]


def _plain(text: str) -> Text:
    """A cell as it stands: what data call their classes is no markup, and moves no cursor."""
    return Text(printable(text))


def summary_table(summary: dict[str, Any], evaluations: Mapping[str, Evaluation]) -> Table:
    """The measurements as a table: what, compared with what, the result."""
    title = Text(f"{summary['name']}: {summary['batches']:,} batches, {summary['documents']:,} documents")
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("Measured")
    table.add_column("Compared with", justify="right")
    table.add_column("Result", justify="right", style="bold")
    table.add_column("", justify="right")
    measured = [e.rows(summary[name]) for name, e in evaluations.items() if name in summary]
    for group in (_loss_rows(summary["losses"]), *measured):
        for row in group:
            table.add_row(*map(_plain, row), end_section=row is group[-1])
    return table


def print_summary(
    summary: dict[str, Any], evaluations: Mapping[str, Evaluation], console: Console | None = None
) -> None:
    """Print the table, what it was measured on, and where the run, the encoder and the plots lie.

    Args:
        summary: What :class:`lcl_composer.callbacks.summary.EndTable` writes to ``summary.json``.
        evaluations: Those of the run, by name; they say how their results read.
        console: Where to; standard output if None.
    """
    console = console or Console()
    console.print()
    console.print(summary_table(summary, evaluations))
    notes = [e.note(summary[name]) for name, e in evaluations.items() if name in summary]
    places = {"Run": "run_folder", "Encoder": "encoder", "Plots": "plots"}
    for note in [*notes, *(f"{label}: {summary[key]}" for label, key in places.items() if summary[key])]:
        console.print(_plain(note), soft_wrap=True)
