"""The table at the end of a run, and the facts under it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lcl_composer.report.metrics_file import series

_LOSSES = ("contrastive", "generation", "total")


def loss_ends(rows: list[dict[str, Any]], few: int = 5) -> dict[str, dict[str, float]]:
    """Mean of the first and of the last ``few`` logged values of each training loss.

    Args:
        rows: What :func:`lcl_composer.report.metrics_file.read_metrics` returns.
        few: Steps a mean; never more than half of them.

    Returns:
        ``{"contrastive": {"start": nats, "end": nats}, ...}`` for the losses that were logged.
    """
    ends = {}
    for name in _LOSSES:
        _, values = series(rows, f"loss/train/{name}")
        if values:
            few_here = max(1, min(few, len(values) // 2))
            first, last = values[:few_here], values[-few_here:]
            ends[name] = {"start": sum(first) / few_here, "end": sum(last) / few_here}
    return ends


def write_summary(summary: dict[str, Any], path: Path) -> None:
    """Write the facts as strict JSON (a number that is not finite becomes ``null``)."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(v) for key, v in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(finite(summary), indent=2) + "\n")


def _loss_rows(losses: dict[str, dict[str, float]]) -> list[tuple[str, str, str, str]]:
    return [
        (
            f"{name.capitalize()} loss",
            f"{v['start']:.3f} at the start",
            f"{v['end']:.3f}",
            f"{v['end'] - v['start']:+.3f}",
        )
        for name, v in losses.items()
    ]


def _retrieval_rows(retrieval: dict[str, float]) -> list[tuple[str, str, str, str]]:
    chance, rows = retrieval["chance/recall@1"], []
    for name, label in (("image_to_text", "Image to text R@1"), ("text_to_image", "Text to image R@1")):
        reached = retrieval[f"{name}/recall@1"]
        factor = f"{reached / chance:.1f} x chance" if chance else ""
        rows.append((label, f"{chance:.2%} by chance", f"{reached:.2%}", factor))
    return rows


def _probe_rows(probe: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    difference = f"{100 * (probe['trained'] - probe['untrained']):+.1f} points"
    untrained, trained = f"{probe['untrained']:.1%} untrained", f"{probe['trained']:.1%}"
    return [("Linear probe accuracy", untrained, trained, difference)]


def summary_table(summary: dict[str, Any]) -> Table:
    """The measurements as a table: what, compared with what, the result."""
    title = f"{summary['name']}: {summary['batches']:,} batches, {summary['documents']:,} documents"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("Measured")
    table.add_column("Compared with", justify="right")
    table.add_column("Result", justify="right", style="bold")
    table.add_column("", justify="right")
    groups = [_loss_rows(summary["losses"])]
    groups.append(_retrieval_rows(summary["retrieval"]) if summary["retrieval"] else [])
    groups.append(_probe_rows(summary["probe"]) if summary["probe"] else [])
    for group in groups:
        for row in group:
            table.add_row(*row, end_section=row is group[-1])
    return table


def _notes(summary: dict[str, Any]) -> list[str]:
    """What the numbers were measured on, and where things lie."""
    notes = []
    if retrieval := summary["retrieval"]:
        notes.append(
            f"R@1: {retrieval['candidates']:.0f} held-out images against the text before each of them"
        )
    if probe := summary["probe"]:
        notes.append(
            f"Probe: {probe['val_images']:,} images of {probe['classes']} classes, "
            f"{probe['features']} features; by chance {probe['chance']:.1%}"
        )
    places = {"Run": "run_folder", "Encoder": "encoder", "Plots": "plots"}
    return notes + [f"{label}: {summary[key]}" for label, key in places.items() if summary[key]]


def print_summary(summary: dict[str, Any], console: Console | None = None) -> None:
    """Print the table, what it was measured on, and where the run, the encoder and the plots lie.

    Args:
        summary: What :class:`lcl_composer.callbacks.summary.EndTable` writes to ``summary.json``.
        console: Where to; standard output if None.
    """
    console = console or Console()
    console.print()
    console.print(summary_table(summary))
    for note in _notes(summary):
        console.print(note, soft_wrap=True, highlight=False)
