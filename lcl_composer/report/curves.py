"""Training curves as one PNG of small multiples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lcl_composer.report.metrics_file import series


@dataclass(frozen=True)
class Panel:
    """One small plot.

    Attributes:
        title: Stands over it.
        unit: Label of the vertical axis.
        key: Metric; one ending in ``*`` stands for the first name with that prefix.
        held_out: The same quantity on held-out data, drawn over it where it was logged.
        smooth: Draw a running mean over the batches.
        from_zero: Start the vertical axis at 0.
    """

    title: str
    unit: str
    key: str
    held_out: str | None = None
    smooth: bool = False
    from_zero: bool = False


_LOSS = "loss/train/"
_PANELS = (
    Panel("Total loss", "weighted sum", f"{_LOSS}total", smooth=True),
    Panel("Logit scale", "1 / temperature", "loss/logit_scale"),
    Panel("Learning rate", "", "lr-*"),
    Panel("Image throughput", "images / s", "throughput/images_per_sec", from_zero=True),
    Panel("Document throughput", "documents / s", "throughput/samples_per_sec", from_zero=True),
    Panel("Token throughput", "tokens / s", "throughput/tokens_per_sec", from_zero=True),
)


def panels(keys: Iterable[str]) -> list[Panel]:
    """The panels of a run that logged these keys: each loss of its method, then what every run has."""
    names = {key.removeprefix(_LOSS) for key in keys if key.startswith(_LOSS)} - {"total"}
    losses = [
        Panel(f"{spelled(name)} loss", unit_of(name), f"{_LOSS}{name}", f"metrics/eval/{name}", smooth=True)
        for name in sorted(names)
    ]
    return [*losses, *_PANELS]


def spelled(name: str) -> str:
    """The name of a loss as a heading: ``image_text_matching`` as "Image text matching"."""
    return name.replace("_", " ").capitalize()


def unit_of(name: str) -> str:
    """The unit of a loss by its name; empty for one that is no log-likelihood we know of."""
    return {"contrastive": "nats", "generation": "nats a token"}.get(name, "")


_INK, _LINE, _HELD_OUT = "#333333", "#1f5fa8", "#d1661f"


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean [N] over ``window`` points, narrower at both ends; NaN is passed over."""
    known = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    count = np.convolve(known.astype(float), kernel, mode="same")
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _points(rows: list[dict[str, Any]], key: str | None) -> tuple[list[int], np.ndarray]:
    """Steps and values [N] of a panel's key."""
    if key and key.endswith("*"):
        key = min((name for row in rows for name in row if name.startswith(key[:-1])), default=None)
    steps, values = series(rows, key) if key else ([], [])
    return steps, np.asarray(values)


def _draw(axes: Any, panel: Panel, rows: list[dict[str, Any]]) -> None:
    steps, values = _points(rows, panel.key)
    window = max(1, len(values) // 50)
    if panel.smooth and window > 1:
        axes.plot(steps, values, color=_LINE, alpha=0.25, linewidth=0.8)
        values = smoothed(values, window)
    axes.plot(
        steps, values, color=_LINE, linewidth=1.8, marker="o" if len(values) < 3 else None, label="training"
    )
    steps, values = _points(rows, panel.held_out)
    if steps:
        axes.plot(steps, values, color=_HELD_OUT, linewidth=1.5, marker="o", markersize=4, label="held out")
        axes.legend(fontsize=8, frameon=False)
    if panel.from_zero and axes.dataLim.ymax > 0:
        axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
    axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.set_ylabel(panel.unit, fontsize=9, color=_INK)
    axes.set_xlabel("batches", fontsize=9, color=_INK)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)


def plot_curves(rows: list[dict[str, Any]], path: Path, title: str) -> bool:
    """Draw every panel that has data, three a row; thin: each batch, thick: running mean.

    Args:
        rows: What :func:`lcl_composer.report.metrics_file.read_metrics` returns.
        path: The PNG.
        title: Stands over the whole.

    Returns:
        False, without a file, if nothing was logged.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [panel for panel in panels({key for row in rows for key in row}) if _points(rows, panel.key)[0]]
    if not shown:
        return False
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(4.0 * columns, 2.7 * lines + 0.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, panel in zip(grid, shown, strict=False):
        _draw(axes, panel, rows)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=12, color=_INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return True
