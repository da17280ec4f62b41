"""What a conversion read, kept and dropped, and why."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from lcl_composer.data.document import Document, Text

#: Failures named by sample for each reason; the counts are always complete.
_NAMED = 20


@dataclass
class Distribution:
    """A histogram of whole numbers: its memory grows with the distinct values, not with the data."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, value: int) -> None:
        """Count one value."""
        self.counts[value] += 1

    @property
    def total(self) -> int:
        """The sum of the values."""
        return sum(value * count for value, count in self.counts.items())

    @property
    def mean(self) -> float:
        """The mean, 0 when nothing was counted."""
        return self.total / max(1, sum(self.counts.values()))

    @property
    def median(self) -> int:
        """The lower median, 0 when nothing was counted."""
        middle, seen = (sum(self.counts.values()) + 1) // 2, 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= middle:
                return value
        return 0


@dataclass
class ConversionReport:
    """Counts of one conversion.

    Attributes:
        kind: The converter's name.
        source: What was converted, as the user gave it.
        options: The filters it ran with.
    """

    kind: str
    source: str
    options: dict[str, Any]
    read: int = 0  # documents
    kept: Counter[str] = field(default_factory=Counter)  # documents by split
    dropped: Counter[str] = field(default_factory=Counter)  # documents by reason
    dropped_images: Counter[str] = field(default_factory=Counter)  # images by reason
    named: dict[str, list[str]] = field(default_factory=dict)  # reason -> the first samples
    images: Distribution = field(default_factory=Distribution)  # images a kept document
    words: Distribution = field(default_factory=Distribution)  # words a kept document
    image_bytes: int = 0
    seconds: float = 0.0
    _started: float = field(default_factory=time.monotonic, repr=False)

    @property
    def documents(self) -> int:
        """Documents kept, all splits together."""
        return sum(self.kept.values())

    def keep(self, document: Document, split: str) -> None:
        """Count a document that was written."""
        self.kept[split] += 1
        self.images.add(len(document.images))
        self.words.add(sum(len(s.text.split()) for s in document.segments if isinstance(s, Text)))
        self.image_bytes += sum(len(image.data) for image in document.images)

    def drop(self, reason: str, name: str) -> None:
        """Count a document that was not written; ``name`` says which."""
        self.dropped[reason] += 1
        self._name(reason, name)

    def drop_image(self, reason: str, name: str) -> None:
        """Count an image that was left out of its document; ``name`` says which."""
        self.dropped_images[reason] += 1
        self._name(reason, name)

    def _name(self, reason: str, name: str) -> None:
        names = self.named.setdefault(reason, [])
        if len(names) < _NAMED:
            names.append(name)

    def finish(self) -> None:
        """Stop the clock."""
        self.seconds = time.monotonic() - self._started

    def table(self) -> Table:
        """Return the summary for the terminal."""
        table = Table(title=f"{self.kind}: {self.source}", show_header=False, title_justify="left")
        table.add_row("documents read", f"{self.read:,}")
        table.add_row("documents kept", _with_parts(self.documents, self.kept))
        for reason, count in self.dropped.most_common():
            table.add_row("  dropped: " + reason, f"{count:,}")
        table.add_row("images kept", f"{self.images.total:,}")
        for reason, count in self.dropped_images.most_common():
            table.add_row("  left out: " + reason, f"{count:,}")
        table.add_row("images a document", f"{self.images.mean:.1f} (median {self.images.median})")
        table.add_row("words a document", f"{self.words.mean:.0f} (median {self.words.median})")
        table.add_row("image bytes", f"{self.image_bytes / 2**20:.1f} MiB")
        table.add_row("time", f"{self.seconds:.1f} s, {self.read / max(self.seconds, 1e-9):.0f} documents/s")
        return table

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        names = [f.name for f in fields(self) if not f.name.startswith("_")]
        facts = {name: getattr(self, name) for name in names}
        for name in ("images", "words"):
            values = getattr(self, name)
            histogram = dict(sorted(values.counts.items()))
            facts[name] = {"mean": values.mean, "median": values.median, "histogram": histogram}
        path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _with_parts(total: int, parts: Counter[str]) -> str:
    shares = ", ".join(f"{split} {parts[split]:,}" for split in ("train", "held_out") if split in parts)
    return f"{total:,} ({shares})" if shares else f"{total:,}"
