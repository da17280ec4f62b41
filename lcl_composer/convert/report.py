"""What a conversion read, kept and dropped, and why."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from lcl_composer.convert.referred import Referred
from lcl_composer.data.document import Document
from lcl_composer.data.words import document_words
from lcl_composer.errors import printable
from lcl_composer.json_data import load_json

#: Failures named in the report for each reason; the counts, and ``failures.jsonl``, are always complete.
_NAMED = 20
#: The fields that count by reason or split.
_COUNTERS = (
    "kept",
    "dropped",
    "dropped_images",
    "cut_words",
    "cut_images",
    "broken",
    "mended",
    "passed_over",
    "split",
)
#: The fields that are distributions.
_DISTRIBUTIONS = ("images", "words", "tokens", "similarities")


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
    """Counts of one conversion, or of a part of it.

    Attributes:
        kind: The converter's name.
        source: What was converted, as the user gave it.
        options: The filters it ran with.
        versions: The packages that had a say in the bytes.
    """

    kind: str
    source: str
    options: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    kept: Counter[str] = field(default_factory=Counter)  # documents by split
    dropped: Counter[str] = field(default_factory=Counter)  # documents by reason
    dropped_images: Counter[str] = field(default_factory=Counter)  # images by reason
    cut_words: Counter[str] = field(default_factory=Counter)  # words of pages that are no content, by reason
    cut_images: Counter[str] = field(default_factory=Counter)  # images of pages that are no content
    broken: Counter[str] = field(default_factory=Counter)  # files that could not be read to their end
    mended: Counter[str] = field(default_factory=Counter)  # kept with a repair or a guess, by what it was
    passed_over: Counter[str] = field(default_factory=Counter)  # files that no document could come of
    named: dict[str, list[str]] = field(default_factory=dict)  # reason -> the first samples
    examples: dict[str, list[str]] = field(default_factory=dict)  # of what was passed over, the first
    images: Distribution = field(default_factory=Distribution)  # images a kept document
    words: Distribution = field(default_factory=Distribution)  # words a kept document
    tokens: Distribution = field(default_factory=Distribution)  # text tokens (CLIP's) a kept document
    similarities: Distribution = field(default_factory=Distribution)  # image to text, in hundredths, read
    split: Counter[str] = field(default_factory=Counter)  # what the Splitter did
    #: Files that documents refer to, whether they are kept or not.
    referred: Referred = field(default_factory=Referred, repr=False, compare=False, metadata={"saved": False})
    image_bytes: int = 0
    shard_bytes: int = 0  # as stored, compressed
    seconds: float = field(default=0.0, metadata={"saved": False})
    #: Called with the reason and the name of every failure.
    on_failure: Callable[[str, str], None] | None = field(
        default=None, repr=False, compare=False, metadata={"saved": False}
    )

    @property
    def documents(self) -> int:
        """Documents kept, all splits together."""
        return sum(self.kept.values())

    @property
    def read(self) -> int:
        """Documents read: kept, whole or split, or dropped."""
        whole = self.documents - self.split["pieces"] + self.split["documents"]
        return whole + sum(self.dropped.values())

    @property
    def reach_unsplit(self) -> tuple[float, float]:
        """Shares of the images and of the text tokens that would reach a loss had nothing been split."""
        tokens = self.tokens.total - self.split["tokens repeated"]
        return (
            1 - self.split["images rescued"] / max(1, self.images.total),
            1 - self.split["tokens rescued"] / max(1, tokens),
        )

    def keep(self, document: Document, split: str, tokens: int) -> None:
        """Count a document that was written, with its number of text tokens."""
        self.kept[split] += 1
        self.images.add(len(document.images))
        self.words.add(document_words(document))
        self.tokens.add(tokens)
        self.image_bytes += sum(len(image.data) for image in document.images)

    def add_similarity(self, value: Any) -> None:
        """Count how alike the source says an image and its text are, whether they are kept or not.

        Anything but a number is passed over; numbers beyond 100 count as 100, so that memory is bounded.
        """
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return
        if not isinstance(value, bool) and math.isfinite(number):
            self.similarities.add(round(100 * max(-100.0, min(number, 100.0))))

    def drop(self, reason: str, name: str) -> None:
        """Count a document that was not written; ``name`` says which."""
        self._count(self.dropped, reason, name)

    def drop_image(self, reason: str, name: str) -> None:
        """Count an image that was left out of its document; ``name`` says which."""
        self._count(self.dropped_images, reason, name)

    def cut_image(self, reason: str, name: str) -> None:
        """Count an image that is no content of its page, like one in a menu; ``name`` says which."""
        self._count(self.cut_images, reason, name, "cut as no content: ")

    def break_file(self, reason: str, name: str) -> None:
        """Count a file that could not be read, or not to its end."""
        self._count(self.broken, reason, name)

    def mend(self, what: str, name: str) -> None:
        """Count what was kept but not as it stood: repaired, or read by a guess."""
        self._count(self.mended, what, name)

    def pass_over(self, what: str, name: str) -> None:
        """Count a file that was not read, most often by its suffix; only the first ones are named."""
        self.passed_over[what] += 1
        _append(self.examples, what, [name])

    def _count(self, counter: Counter[str], reason: str, name: str, before: str = "") -> None:
        """Count by reason, and name the sample under the reason with what stands ``before`` it."""
        counter[reason] += 1
        _append(self.named, before + reason, [name])
        if self.on_failure is not None:
            self.on_failure(before + reason, name)

    def add(self, part: ConversionReport) -> None:
        """Add the counts of a part. Parts added in one order always give one report."""
        for name in _COUNTERS:
            getattr(self, name).update(getattr(part, name))
        for name in _DISTRIBUTIONS:
            getattr(self, name).counts.update(getattr(part, name).counts)
        for mine, others in ((self.named, part.named), (self.examples, part.examples)):
            for reason, names in others.items():
                _append(mine, reason, names)
        self.image_bytes += part.image_bytes
        self.shard_bytes += part.shard_bytes

    def table(self) -> Table:
        """Return the summary for the terminal."""
        table = Table(title=_shown(f"{self.kind}: {self.source}"), show_header=False, title_justify="left")
        table.add_row("documents read", f"{self.read:,}")
        table.add_row("documents kept", _with_parts(self.documents, self.kept))
        for reason, count in self.dropped.most_common():
            table.add_row(_shown("  dropped: " + reason), f"{count:,}")
        if self.split["documents"]:
            images, text = self.reach_unsplit
            table.add_row(
                "long documents split", f"{self.split['documents']:,} into {self.split['pieces']:,}"
            )
            table.add_row(
                "  without, training would see", f"{images:.0%} of the images, {text:.0%} of the text"
            )
        table.add_row("images kept", f"{self.images.total:,}")
        for reason, count in self.dropped_images.most_common():
            table.add_row(_shown("  left out: " + reason), f"{count:,}")
        for reason in sorted({*self.cut_words, *self.cut_images}):
            words, images = self.cut_words[reason], self.cut_images[reason]
            table.add_row(_shown("cut from pages: " + reason), f"{words:,} words, {images:,} images")
        for reason, count in self.broken.most_common():
            table.add_row(_shown("broken files: " + reason), f"{count:,}")
        for what, count in self.mended.most_common():
            table.add_row(_shown("mended: " + what), f"{count:,}")
        for what, count in self.passed_over.most_common():
            table.add_row(_shown("not read: " + what), f"{count:,}")
        table.add_row("images a document", f"{self.images.mean:.1f} (median {self.images.median})")
        table.add_row("words a document", f"{self.words.mean:.0f} (median {self.words.median})")
        table.add_row("text tokens a document", f"{self.tokens.mean:.0f} (median {self.tokens.median})")
        table.add_row("image bytes", f"{self.image_bytes / 2**20:.1f} MiB")
        table.add_row("shard bytes", f"{self.shard_bytes / 2**20:.1f} MiB")
        if self.seconds:
            table.add_row("time", f"{self.seconds:.1f} s, {self.read / self.seconds:.0f} documents/s")
        return table

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values: all but the time, so that a restart changes nothing."""
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata.get("saved", True)}
        for name, value in facts.items():
            if isinstance(value, Distribution):
                histogram = {str(key): count for key, count in sorted(value.counts.items())}
                facts[name] = {"mean": value.mean, "median": value.median, "histogram": histogram}
        return {**facts, "read": self.read}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> ConversionReport:
        """Rebuild a report from :meth:`to_json`."""
        values: dict[str, Any] = {key: value for key, value in facts.items() if key != "read"}
        for name in _COUNTERS:
            values[name] = Counter(values.get(name, {}))
        for name in _DISTRIBUTIONS:
            histogram = values[name]["histogram"]
            values[name] = Distribution(Counter({int(key): count for key, count in histogram.items()}))
        return cls(**values)

    @classmethod
    def load(cls, path: Path) -> ConversionReport:
        """Read what :meth:`save` wrote."""
        return cls.from_json(load_json(path.read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        """Write everything but the time as JSON."""
        text = json.dumps(self.to_json(), indent=2, sort_keys=True, ensure_ascii=True)
        path.write_text(text + "\n", encoding="utf-8")


def _shown(text: str) -> str:
    """A text with names out of the data, for the terminal: no markup, and nothing that it obeys."""
    return escape(printable(text))


def _append(named: dict[str, list[str]], reason: str, names: list[str]) -> None:
    mine = named.setdefault(reason, [])
    mine.extend(names[: _NAMED - len(mine)])


def _with_parts(total: int, parts: Counter[str]) -> str:
    shares = ", ".join(f"{split} {parts[split]:,}" for split in sorted(parts, reverse=True) if split != "all")
    return f"{total:,} ({shares})" if shares else f"{total:,}"
