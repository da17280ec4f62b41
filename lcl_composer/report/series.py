"""Curves as numbers for the page: thinned to what a screen can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lcl_composer.report.curves import panels
from lcl_composer.report.run import Run

#: Points a curve; more batches than that are averaged, their range drawn behind.
POINTS = 600

#: Points at which batches are translated to documents, tokens and seconds.
_KNOTS = 200

_COUNTERS = {"batches": "step", "documents": "sample", "tokens": "token", "minutes": "seconds"}


def curves(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page's script draws.

    Returns:
        ``panels`` (title, unit, key, held_out, main), ``runs`` in order, each with ``axes`` (batches beside
        documents, tokens, minutes) and ``series`` by key: ``x`` in batches, ``y``, and where batches were
        averaged ``lo`` and ``hi``; null where a value is not finite.
    """
    keys = sorted({key for run in runs for key in run.keys if not key.startswith("final/")})
    panels = _panels(keys, {key for key in keys if any(_varies(run, key) for run in runs)})
    drawn = {key for panel in panels for key in (panel["key"], panel["held_out"]) if key}
    return {"panels": panels, "runs": [_of_run(run, drawn) for run in runs]}


def thin(steps: Sequence[int], values: Sequence[float], points: int = POINTS) -> dict[str, Any]:
    """Average consecutive values so that no more than ``points`` are left; NaN counts only if alone."""
    size = -(-len(steps) // points) if steps else 1
    if size == 1:
        return {"x": list(steps), "y": [_short(value) for value in values]}
    bins = [slice(i, i + size) for i in range(0, len(steps), size)]
    x, y = np.asarray(steps, float), np.asarray(values, float)
    finite = [part[np.isfinite(part)] for part in (y[b] for b in bins)]
    summary = {
        "y": [part.mean() if len(part) else math.nan for part in finite],
        "lo": [part.min() if len(part) else math.nan for part in finite],
        "hi": [part.max() if len(part) else math.nan for part in finite],
    }
    return {"x": [_short(x[b].mean()) for b in bins], **{k: list(map(_short, v)) for k, v in summary.items()}}


def _panels(keys: Sequence[str], moving: set[str]) -> list[dict[str, Any]]:
    """The known quantities first, then whatever else was logged and moved, under its own name."""
    found, used = [], set()
    for panel in panels(keys):
        prefix = panel.key[:-1] if panel.key.endswith("*") else None
        key = next((k for k in keys if k == panel.key or (prefix and k.startswith(prefix))), None)
        held_out = panel.held_out if panel.held_out in keys else None
        if key or held_out:
            found.append(
                {
                    "title": panel.title,
                    "unit": panel.unit,
                    "key": key,
                    "held_out": held_out,
                    "main": True,
                    "zero": panel.from_zero,
                    "smooth": panel.smooth or panel.from_zero,
                }
            )
            used |= {key, held_out} | {k for k in keys if prefix and k.startswith(prefix)}
    rest = [key for key in keys if key in moving - used and "/device/" not in key]
    return found + [
        {"title": key, "unit": "", "key": key, "held_out": None, "main": False, "zero": False, "smooth": True}
        for key in rest
    ]


def _varies(run: Run, key: str) -> bool:
    return len(set(run.values(key))) > 1


def _of_run(run: Run, drawn: set[str]) -> dict[str, Any]:
    found = {}
    for key in sorted(drawn):
        pairs = [(row["step"], row[key]) for row in run.rows if key in row]
        if pairs:
            found[key] = thin([s for s, _ in pairs], [math.nan if v is None else v for _, v in pairs])
    rows = run.rows[:: max(1, len(run.rows) // _KNOTS)] + run.rows[-1:]
    scale = {"minutes": 1 / 60}
    axes = {
        name: [_short((row.get(counter) or 0) * scale.get(name, 1)) for row in rows]
        for name, counter in _COUNTERS.items()
    }
    return {"name": run.name, "axes": axes, "series": found}


def _short(value: float) -> float | None:
    """Six significant digits, None where it is not finite: JSON has no NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
