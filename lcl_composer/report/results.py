"""Final numbers: one row a quantity, one cell a variant, the best marked where higher or lower is better."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, median, stdev

from lcl_composer.report.curves import spelled, unit_of
from lcl_composer.report.run import Run, is_number
from lcl_composer.report.summary import loss_ends
from lcl_composer.report.variants import Line, Variant


@dataclass(frozen=True)
class Cell:
    """A variant's number.

    Attributes:
        values: One a run, finite.
        text: The number, or mean ± sd over the runs (``n - 1`` in the sd); "" where there is none.
        detail: Each run's number by name.
        mark: ``best``, ``close`` (no further from the best than the deviation of either), or "".
        final: Whether the numbers are those of finished runs.
        spread: How uncertain a single number is: half of its interval.
    """

    values: tuple[float, ...]
    text: str
    detail: str
    mark: str
    final: bool
    spread: float = 0.0

    @property
    def mean(self) -> float:
        """Mean over the runs; NaN without any."""
        return fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation over the runs; the spread of a single one."""
        return stdev(self.values) if len(self.values) > 1 else self.spread


@dataclass(frozen=True)
class Row:
    """A quantity.

    Attributes:
        label: Its name.
        group: Rows of a group stand together.
        better: 1: higher is better, -1: lower, 0: neither, nothing is marked.
        unit: Stands behind the label.
        note: Why nothing is marked, or what to compare with.
        cells: One a variant.
    """

    label: str
    group: str
    better: int
    unit: str
    note: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Quantity:
    """How a row is read off a run; ``settings`` are those under which its numbers cannot be compared."""

    label: str
    group: str
    better: int
    read: Callable[[Run], float | None]
    unit: str = ""
    note: str = ""
    scale: float = 1.0
    decimals: int | None = None
    settings: tuple[str, ...] = ()


#: ``loss`` held the weights in runs before there was ``method``.
_WEIGHTS = ("method", "loss", "algorithms.contrastive_weight")
_NEGATIVES = ("global_train_batch_size", "device_train_microbatch_size", "algorithms.grad_cache")
_TEXT = ("tokenizer", "data.max_tokens")
_TRAIN = ("data.train.local", "data.train.streams", "data.train.generate")
_EVAL = ("data.eval.local", "data.eval.streams", "data.eval.generate")


def results(variants: Sequence[Variant], differing: Iterable[Line]) -> list[Row]:
    """The rows that at least one run has a number for.

    Args:
        variants: The columns.
        differing: Settings that differ; a loss is not marked if they change what it measures.
    """
    changed = list(differing)
    quantities = [
        *_training(variants),
        *_held_out(variants),
        *_retrieval(variants),
        *_probe(variants),
        *_evaluated(variants),
        *_logged(variants),
    ]
    rows = [_row(quantity, variants, changed) for quantity in quantities]
    return [row for row in rows if any(cell.values for cell in row.cells)]


def throughput(variants: Sequence[Variant]) -> list[Row]:
    """Speed and memory: medians over the second half of the run, so that warming up does not count."""
    keys = {key for variant in variants for run in variant.runs for key in run.keys}
    shown = [
        key
        for key in sorted(keys)
        if key.startswith(("throughput/", "memory/peak", "memory/host", "data/wait"))
    ]
    quantities = [
        Quantity(_spelled(key), "", 0, partial(_median_of_half, key), scale=1e-9 if "flops" in key else 1.0)
        for key in shown
        if "/device/" not in key and "batches_per_sec" not in key
    ]
    wall = Quantity("Training time", "", 0, lambda run: run.last.get("seconds"), "min", scale=1 / 60)
    rows = [_row(quantity, variants, []) for quantity in [*quantities, wall]]
    return [row for row in rows if any(cell.values for cell in row.cells)]


def _losses(variants: Sequence[Variant], prefix: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Names of the losses that any run logged, their units, and the settings that they depend on."""
    keys = {key for variant in variants for run in variant.runs for key in run.keys}
    known = {"contrastive": _NEGATIVES, "generation": _TEXT}
    for name in sorted({key.removeprefix(prefix) for key in keys if key.startswith(prefix)} - {"total"}):
        yield name, unit_of(name), known.get(name, ("method", *_NEGATIVES, *_TEXT))


def _training(variants: Sequence[Variant]) -> list[Quantity]:
    def end(name: str) -> Callable[[Run], float | None]:
        return lambda run: loss_ends(run.rows).get(name, {}).get("end")

    group = "Training loss, mean of the last 5 batches"
    total = _WEIGHTS + _NEGATIVES + _TEXT + _TRAIN
    losses = [
        Quantity(spelled(name), group, -1, end(name), unit, settings=settings + _TRAIN, decimals=3)
        for name, unit, settings in _losses(variants, "loss/train/")
    ]
    return [*losses, Quantity("Total", group, -1, end("total"), settings=total, decimals=3)]


def _held_out(variants: Sequence[Variant]) -> list[Quantity]:
    group, prefix = "Held-out loss, last evaluation", "metrics/eval/"
    return [
        Quantity(
            spelled(name), group, -1, partial(_last, prefix + name), unit, settings=s + _EVAL, decimals=3
        )
        for name, unit, s in _losses(variants, prefix)
    ]


def _retrieval(variants: Sequence[Variant]) -> list[Quantity]:
    read = partial(partial, _measured, "retrieval")
    counts = _found(variants, read("candidates"))
    group = f"Retrieval among {_joined(counts)} held-out images"
    better = 1 if len(counts) == 1 else 0  # among more images it is harder
    return [
        Quantity(
            f"{way.replace('_', ' ').capitalize()} R@{k}",
            group,
            better,
            read(f"{way}/recall@{k}"),
            "%",
            _chance(_found(variants, read(f"chance/recall@{k}"))),
            scale=100.0,
            decimals=1,
            settings=_EVAL,
        )
        for way in ("text_to_image", "image_to_text")
        for k in (1, 5, 10)
    ]


def _probe(variants: Sequence[Variant]) -> list[Quantity]:
    read = partial(partial, _measured, "probe")
    note = _chance(_found(variants, read("chance")))
    group, form = "Linear probe of the frozen encoder", {"unit": "%", "scale": 100.0, "decimals": 1}
    return [
        Quantity("Accuracy", group, 1, read("trained"), note=note, settings=("evaluation.probe",), **form),
        Quantity("Accuracy before training", group, 0, _before_training, **form),
    ]


def _before_training(run: Run) -> float | None:
    """Of the same encoder untrained, or as it came from elsewhere."""
    found = _measured("probe", "untrained", run)
    return _measured("probe", "as_it_came", run) if found is None else found


def _evaluated(variants: Sequence[Variant]) -> Iterator[Quantity]:
    """What the other evaluations found at the end, where a number's name says which way is better."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in (run for variant in variants for run in variant.measured):
        named = run.config.get("evaluation")
        for name in {*(named if isinstance(named, dict) else ())} - {"retrieval", "probe"}:
            measured = run.summary.get(name)
            for key, value in measured.items() if isinstance(measured, dict) else ():
                if direction(key) and is_number(value):
                    found.setdefault((name, key), []).append(value)
    for (name, key), values in sorted(found.items()):
        share = all(0 <= value <= 1 for value in values)
        form = {"unit": "%", "scale": 100.0, "decimals": 1} if share else {}
        chances = [_found(variants, partial(_measured, name, beside)) for beside in chance_names(key)]
        label = key.replace("_", " ").replace("/", ", ")
        yield Quantity(
            label[:1].upper() + label[1:],
            f"{name.replace('_', ' ').capitalize()} at the end",
            direction(key),
            partial(_measured, name, key),
            note=_chance(next(filter(None, chances), set()), form.get("scale", 1.0)),
            settings=(f"evaluation.{name}", *_EVAL),
            **form,
        )


def chance_names(key: str) -> list[str]:
    """Under what an evaluation may say what chance gives of its number ``key``, the most exact first."""
    names = [f"chance/{key}", f"chance/{key.rpartition('/')[2]}"]
    several = re.search(r"(@|top[-_]?)(?!1$)\d+$", key)  # ``chance`` is that of one guess
    return names if several else [*names, "chance"]


def _logged(variants: Sequence[Variant]) -> list[Quantity]:
    """What callbacks measure in the course of training, if its name says which way is better."""
    keys = {key for variant in variants for run in variant.runs for key in run.keys}
    group = "While training, last value"
    return [
        Quantity(key, group, direction(key), partial(_last, key), decimals=4)
        for key in sorted(keys)
        if direction(key) and not key.startswith(("final/", "loss/", "metrics/eval/"))
    ]


def direction(key: str) -> int:
    """1 if a metric of this name is better when higher, -1 if lower, 0 if the name does not say."""
    if re.search(r"(^|[/_])(chance|untrained|as_it_came)([/_]|$)", key):
        return 0
    better = r"recall@|r@\d|accuracy|exact_match|top[-_]?\d"
    words = r"(^|[/_])(probe|knn|map|bleu|cider|rouge|meteor)([/_\d-]|$)"
    if re.search(f"{better}|{words}", key, re.IGNORECASE):
        return 1
    return -1 if re.search(r"loss|perplexity|error|entropy", key, re.IGNORECASE) else 0


def _row(quantity: Quantity, variants: Sequence[Variant], changed: Sequence[Line]) -> Row:
    cells = [_cell(quantity, variant) for variant in variants]
    there = [column for column, cell in enumerate(cells) if cell.values]
    reasons = [
        line.label
        for line in changed
        if line.label.startswith(quantity.settings) and len({line.cells[column] for column in there}) > 1
    ]
    better = 0 if reasons else quantity.better
    note = f"not comparable: {_listed(reasons)}" if reasons else quantity.note
    shown = tuple(marked(cells, better)) if better else tuple(cells)
    return Row(quantity.label, quantity.group, better, quantity.unit, note, shown)


def _listed(reasons: Sequence[str], most: int = 3) -> str:
    """``a, b, c and 4 more differ``."""
    more = f" and {len(reasons) - most} more" * (len(reasons) > most)
    return f"{', '.join(reasons[:most])}{more} differ{'s' * (len(reasons) == 1)}"


def _cell(quantity: Quantity, variant: Variant) -> Cell:
    found = [(run.name, quantity.read(run)) for run in variant.measured]
    numbers = [(name, v * quantity.scale) for name, v in found if is_number(v)]
    values = tuple(value for _, value in numbers)
    if not values:
        return Cell((), "", "", "", variant.finished)
    decimals = decimals_of(values) if quantity.decimals is None else quantity.decimals
    text = f"{fmean(values):,.{decimals}f}"
    if len(values) > 1:
        text += f" ± {stdev(values):,.{decimals}f}"
    detail = "; ".join(f"{name}: {value:,.{decimals}f}" for name, value in numbers)
    return Cell(values, text, detail, "", variant.finished)


def marked(cells: Sequence[Cell], better: int) -> Iterable[Cell]:
    """Mark the best mean of finished variants, unless all are equal, and what is within a deviation of it."""
    final = [cell for cell in cells if cell.values and cell.final]
    if len({cell.mean for cell in final}) < 2:
        return cells
    best = max(final, key=lambda cell: better * cell.mean)

    def mark(cell: Cell) -> str:
        if not cell.values or not cell.final:
            return ""
        if cell.mean == best.mean:
            return "best"
        return "close" if abs(cell.mean - best.mean) <= max(cell.deviation, best.deviation) else ""

    return [replace(cell, mark=mark(cell)) for cell in cells]


def _measured(part: str, name: str, run: Run) -> float | None:
    """A number of ``summary.json``; None for what is none, in a damaged one."""
    found = run.summary.get(part)
    value = found.get(name) if isinstance(found, dict) else None
    return value if is_number(value) else None


def _found(variants: Sequence[Variant], read: Callable[[Run], float | None]) -> set[float]:
    values = [read(run) for variant in variants for run in variant.measured]
    return {value for value in values if value is not None}


def _chance(values: set[float], scale: float = 100.0) -> str:
    return f"chance {_joined(scale * value for value in values)}" if values else ""


def _last(key: str, run: Run) -> float | None:
    values = run.values(key)
    return values[-1] if values else None


def _median_of_half(key: str, run: Run) -> float | None:
    values = [value for value in run.values(key) if math.isfinite(value)]
    return median(values[len(values) // 2 :]) if values else None


def decimals_of(values: Sequence[float]) -> int:
    """Enough for three digits."""
    largest = max(map(abs, values))
    return 0 if largest == 0 else max(0, min(6, 2 - math.floor(math.log10(largest))))


def _spelled(key: str) -> str:
    name = key.split("/", 1)[1].replace("_per_sec", " / s").replace("_", " ").replace("samples", "documents")
    name = name.replace("flops", "GFLOP")
    return name[0].upper() + name[1:]


def _joined(numbers: Iterable[float]) -> str:
    return " or ".join(f"{number:.3g}" if number < 1000 else f"{number:,.0f}" for number in sorted(numbers))
