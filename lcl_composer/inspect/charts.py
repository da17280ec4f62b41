"""Histograms and shares in the numbers that the page's SVG and bars need."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lcl_composer.inspect.histogram import histogram

#: Of the drawing, as the viewBox in ``page/parts.html.j2``.
_WIDTH, _HEIGHT, _TOP = 400, 124, 8


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart, in the units of the drawing."""

    label: str
    count: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Tick:
    """A number under the axis."""

    label: str
    x: float
    anchor: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A histogram ready to draw; without bars when nothing was counted."""

    bars: list[Bar]
    ticks: list[Tick]
    median: str
    mean: str
    low: str
    high: str
    tallest: int


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a whole; ``style`` is its class in ``page/page.css``."""

    label: str
    count: int
    share: str
    style: str


def chart(counts: Counter[int], median: int, mean: float, hundredths: bool = False) -> Chart:
    """Return the chart of whole numbers, or of numbers that were counted in hundredths."""

    def say(value: float) -> str:
        return f"{value / 100:.2f}" if hundredths else f"{value:,.0f}"

    bars = histogram(counts)
    if not bars:
        return Chart([], [], "", "", "", "", 0)
    tallest, step = max(bar.count for bar in bars), min(_WIDTH / len(bars), 40)
    drawn = []
    for i, bar in enumerate(bars):
        height = (_HEIGHT - _TOP) * bar.count / tallest
        height = max(height, 1.5) if bar.count else 0
        label = say(bar.low) if bar.low == bar.high else f"{say(bar.low)} to {say(bar.high)}"
        drawn.append(Bar(label, bar.count, i * step + 1, _HEIGHT - height, step - 2, height))
    every = -(-len(bars) // 6)
    ticks = [
        Tick(say(bar.low), i * step + step / 2, "middle") for i, bar in enumerate(bars) if i % every == 0
    ]
    return Chart(
        [*drawn],
        ticks,
        say(median),
        say(mean) if hundredths or mean >= 100 else f"{mean:.1f}",
        say(min(counts)),
        say(max(counts)),
        tallest,
    )


def shares(parts: list[tuple[str, int, str]]) -> list[Share]:
    """Return parts ``(label, count, style)`` with their shares of the sum."""
    total = max(1, sum(count for _, count, _ in parts))
    return [Share(label, count, f"{count / total:.1%}", style) for label, count, style in parts]
