"""Which classes are taken for which, as a picture of lines and a list."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from markupsafe import Markup, escape

from lcl_composer.evaluation.outcomes import Outcomes

#: Classes up to which the matrix is drawn, and up to which its rows bear names.
MOST_DRAWN, MOST_NAMED = 100, 24

_LISTED = 8


@dataclass(frozen=True)
class Confused:
    """A class that is taken for another, how often, and of how many images."""

    label: str
    predicted: str
    count: int
    of: int


def most_confused(outcomes: Outcomes) -> list[Confused]:
    """The pairs of classes that are confused most often, the most frequent first."""
    labels = Counter(outcomes.labels)
    wrong = Counter(
        (label, found)
        for label, found in zip(outcomes.labels, outcomes.predicted, strict=True)
        if label != found
    )
    ordered = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    names = outcomes.classes
    return [
        Confused(names[label], names[found], count, labels[label])
        for (label, found), count in ordered[:_LISTED]
    ]


def matrix(outcomes: Outcomes, side: int = 300) -> Markup:
    """The share of each class's images that is taken for each, a row a class, as SVG; "" for many classes."""
    names = outcomes.classes
    if not names or len(names) > MOST_DRAWN:
        return Markup("")
    labels = Counter(outcomes.labels)
    pairs = Counter(zip(outcomes.labels, outcomes.predicted, strict=True))
    named = len(names) <= MOST_NAMED
    cell, margin = side / len(names), 12 + 5 * max(len(_short(name)) for name in names) if named else 2
    parts = []
    for (label, found), count in sorted(pairs.items()):
        share = count / labels[label]
        title = f"{names[label]} as {names[found]}: {count} of {labels[label]}"
        kind = "right" if label == found else "wrong"
        parts.append(
            f'<rect class="{kind}" x="{margin + found * cell:.1f}" y="{label * cell:.1f}" width="{cell:.1f}" '
            f'height="{cell:.1f}" fill-opacity="{max(share, 0.04):.2f}"><title>{escape(title)}</title></rect>'
        )
    if named:
        for row, name in enumerate(names):
            middle = (row + 0.5) * cell
            parts.append(f'<text x="{margin - 5}" y="{middle + 3.5:.1f}">{escape(_short(name))}</text>')
            x = margin + middle
            parts.append(
                f'<text x="{x:.1f}" y="{side + 8}" transform="rotate(-60 {x:.1f} {side + 8})">'
                f"{escape(_short(name))}</text>"
            )
    height = side + margin
    frame = f'<rect class="frame" x="{margin}" y="0" width="{side}" height="{side}"/>'
    return Markup(
        f'<svg class="confusions" viewBox="0 0 {margin + side + 2} {height}" role="img" '
        f'aria-label="confusions">{frame}{"".join(parts)}</svg>'
    )


def _short(name: str, longest: int = 15) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
