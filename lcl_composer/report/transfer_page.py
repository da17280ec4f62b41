"""Encoders by tasks on one page that needs nothing from outside itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from markupsafe import Markup

from lcl_composer.json_data import load_json
from lcl_composer.report.confusions import Confused, matrix, most_confused
from lcl_composer.report.pictures import Map, attention_maps, inline
from lcl_composer.report.report_page import TEMPLATES, galleries, page_template, policy
from lcl_composer.report.results import Cell, Row, chance_names, decimals_of, direction, marked
from lcl_composer.report.transfer import Entry
from lcl_composer.report.variants import Variant

_WIDEST, _SHOWN = 400, 8

#: What callbacks and evaluations draw of captions: a list of ``{"id", "file", "text", "references"}``.
CAPTIONS_FILE = "captions.json"


@dataclass(frozen=True)
class Confusion:
    """What an encoder takes for what in a task."""

    number: int
    title: str
    matrix: Markup
    most: list[Confused]


@dataclass(frozen=True)
class Written:
    """An image, what people wrote about it, and what was written with each encoder, by its number."""

    image: str
    references: tuple[str, ...]
    texts: tuple[tuple[int, str], ...]


def render(entries: Sequence[Entry], results: Mapping[str, Any], version: str) -> str:
    """Return the page.

    Args:
        entries: The finished runs.
        results: What :func:`lcl_composer.report.transfer.results_of` returns.
        version: Of LCL-Composer, named in the foot.
    """
    labels = list(dict.fromkeys(encoder["label"] for encoder in results["encoders"]))
    tasks = list(dict.fromkeys(entry.task for entry in entries))
    variants = [Variant(label, tuple(e.run for e in entries if e.encoder == label)) for label in labels]
    page = page_template("transfer.html.j2").render(
        variants=variants,
        tasks=tasks,
        entries=entries,
        results=results,
        rows=[row for task in tasks for row in rows_of(entries, labels, task)],
        confusions=list(_confusions(entries, labels)),
        galleries=galleries(variants),
        written=_written(entries, labels),
        attention=list(_attention(entries, labels)),
        described=list(_described(entries, labels)),
        css=Markup((TEMPLATES / "report.css").read_text() + (TEMPLATES / "transfer.css").read_text()),
        policy=policy(),
        version=version,
    )
    return page.lstrip()


def rows_of(entries: Sequence[Entry], labels: Sequence[str], task: str) -> list[Row]:
    """A row for each number of a task whose name says which way is better, a cell an encoder."""
    of_task = [entry for entry in entries if entry.task == task]
    names = dict.fromkeys(name for entry in of_task for name in entry.numbers if direction(name))
    return [_row(of_task, labels, task, name) for name in names]


def _row(entries: Sequence[Entry], labels: Sequence[str], task: str, name: str) -> Row:
    values = [entry.numbers[name] for entry in entries if name in entry.numbers]
    share = all(0 <= value <= 1 for value in values)
    scale, decimals = (100.0, 1) if share else (1.0, decimals_of(values))
    cells = [_cell([e for e in entries if e.encoder == label], name, scale, decimals) for label in labels]
    evaluation, _, key = name.partition("/")
    beside = [f"{evaluation}/{chance}" for chance in chance_names(key)]
    named = [{e.numbers[c] for e in entries if name in e.numbers and c in e.numbers} for c in beside]
    chances = next(filter(None, named), set())
    ends = sorted({min(chances), max(chances)}) if chances else []
    note = f"chance {' to '.join(f'{scale * end:.3g}' for end in ends)}" if ends else ""
    group = task if evaluation == task else f"{task}: {evaluation}"
    label = key.replace("_", " ").replace("/", ", ")
    better = direction(name)
    return Row(label[:1].upper() + label[1:], group, better, "%" * share, note, tuple(marked(cells, better)))


def _cell(entries: Sequence[Entry], name: str, scale: float, decimals: int) -> Cell:
    """The number of one run with its interval, or mean and deviation of several."""
    found = [entry for entry in entries if name in entry.numbers]
    values = tuple(scale * entry.numbers[name] for entry in found)
    if not values:
        return Cell((), "", "", "", True)
    ends = [tuple(scale * end for end in e.intervals[name]) if name in e.intervals else None for e in found]
    details = [
        f"{e.run.name}: {v:,.{decimals}f}" + (f" ({i[0]:,.{decimals}f} to {i[1]:,.{decimals}f})" if i else "")
        for e, v, i in zip(found, values, ends, strict=True)
    ]
    text, spread, only = f"{fmean(values):,.{decimals}f}", 0.0, ends[0]
    if len(values) > 1:
        text += f" ± {stdev(values):,.{decimals}f}"
    elif only:
        text += f" [{only[0]:,.{decimals}f}, {only[1]:,.{decimals}f}]"
        spread = (only[1] - only[0]) / 2
    return Cell(values, text, "; ".join(details), "", True, spread)


def _first(entries: Sequence[Entry], label: str, task: str) -> Entry | None:
    return next((entry for entry in entries if (entry.encoder, entry.task) == (label, task)), None)


def _firsts(entries: Sequence[Entry], labels: Sequence[str]) -> Iterator[tuple[int, Entry]]:
    """The first run of each encoder on each task, with the encoder's number."""
    for task in dict.fromkeys(entry.task for entry in entries):
        for number, label in enumerate(labels):
            if entry := _first(entries, label, task):
                yield number, entry


def _confusions(entries: Sequence[Entry], labels: Sequence[str]) -> Iterator[Confusion]:
    for number, entry in _firsts(entries, labels):
        for name, outcomes in entry.outcomes.items():
            if outcomes.classes:
                title = entry.task if name == entry.task else f"{entry.task}: {name}"
                yield Confusion(number, title, matrix(outcomes), most_confused(outcomes))


def _attention(entries: Sequence[Entry], labels: Sequence[str]) -> Iterator[tuple[int, str, list[Map]]]:
    """Attention maps of each encoder, of the first task that has some."""
    shown: set[int] = set()
    for number, entry in _firsts(entries, labels):
        maps = attention_maps(Variant(entry.encoder, (entry.run,)))[1]
        if maps and number not in shown:
            shown.add(number)
            yield number, f"{entry.encoder}, {entry.task}", maps


def _written(entries: Sequence[Entry], labels: Sequence[str]) -> list[tuple[str, list[Written]]]:
    """Captions beside their pictures, by task."""
    found: dict[str, dict[str, Written]] = {}
    for number, entry in _firsts(entries, labels):
        pictures = found.setdefault(entry.task, {})
        for item in _captions(entry)[:_SHOWN]:
            known = pictures.get(item["id"]) or Written(
                inline(entry.run.folder / item["file"], _WIDEST), tuple(item["references"]), ()
            )
            pictures[item["id"]] = Written(
                known.image, known.references, (*known.texts, (number, item["text"]))
            )
    return [(task, list(pictures.values())) for task, pictures in found.items() if pictures]


def _captions(entry: Entry) -> list[dict[str, Any]]:
    path = entry.run.folder / CAPTIONS_FILE
    if not entry.run.has(CAPTIONS_FILE):
        return []
    try:
        items = load_json(path.read_text())
        root = entry.run.folder.resolve()
        inside = [(root / item["file"]).resolve().is_relative_to(root) for item in items]
        if not all(inside) or not all({"id", "text", "references"} <= item.keys() for item in items):
            raise ValueError("an item is not a caption")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        entry.run.notes.append(f"{CAPTIONS_FILE} is damaged and left out")
        return []
    return items


def _described(entries: Sequence[Entry], labels: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """What is read off each encoder, as the first run of each of its weights says."""
    for number, label in enumerate(labels):
        by_weights: dict[str, dict[str, Any]] = {}
        for entry in entries:
            features = entry.run.summary.get("features")
            if entry.encoder == label and isinstance(features, dict):
                by_weights.setdefault(str(features.get("weights")), features)
        yield from ((number, features) for features in by_weights.values())
