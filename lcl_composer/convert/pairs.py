"""What sources of image-caption pairs have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted, Rejected, Source
from lcl_composer.convert.text import speaks
from lcl_composer.data.document import Document, Image, Text


@dataclass(frozen=True, kw_only=True)
class PairSource(Source):
    """A source of pairs, which may tell how alike image and caption are and the caption's language."""

    min_similarity: float | None = None
    language: list[str] | None = None

    def pair(self, name: str, image: bytes, caption: str) -> Converted:
        """Return the sample of a pair: the image floats around its caption."""
        document = Document(name, f"{self.called}/{name}", (Image(image, floats=True), Text(caption)))
        return Converted(document, caption.casefold())


def check_facts(source: PairSource, similarity: Any, language: Any, report: ConversionReport) -> None:
    """Hold a pair's facts against the options; the report counts the similarity.

    Raises:
        Rejected: If the similarity is too low or absent, or the language is another one.
    """
    report.add_similarity(similarity)
    if source.min_similarity is not None and not at_least(similarity, source.min_similarity):
        raise Rejected(f"similarity under {source.min_similarity:g}, or none")
    if source.language and isinstance(language, str) and not speaks(language, source.language):
        raise Rejected("another language")


def at_least(value: Any, threshold: float) -> bool:
    """Say whether ``value`` is a number, or a text of one, that reaches the threshold; NaN never does."""
    try:
        return not isinstance(value, bool) and float(value) >= threshold
    except (TypeError, ValueError, OverflowError):
        return False
