"""A document longer than the model's context -> several that fit, each image beside the text it belongs to.

This is done in conversion and not in the stream: the index then says how many documents there are, so that
shuffling, resume and a change of ranks need to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np

from lcl_composer.convert.blocks import Divider
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted, Source
from lcl_composer.data.document import Document, Segment, Text
from lcl_composer.data.interleave import LayoutRules, lay_out
from lcl_composer.data.tokenizer import Tokenizer, loaded_tokenizer, structural_ids
from lcl_composer.errors import ConfigError

#: ``<start_of_text>`` and ``<end_of_text>`` of a document, or ``<start_of_img>`` and ``<end_of_img>``.
_MARKS = 2
#: Text tokens that must have room beside an image.
_LEAST_TEXT = 8


@dataclass(frozen=True)
class Interleaved(Source):
    """A source of documents that may be longer than the model's context.

    Args:
        max_tokens: A longer document is split into several that fit, counted as data.max_tokens is; 0 leaves
            documents whole, and training cuts them.
        tokens_per_image: Patch tokens that training has for an image; 49 for B/32, 196 for B/16.
        tokenizer: The tokenizer of training: clip, or the path of a tokenizers JSON file.
        repeat_headings: Begin what follows a split with the title and the heading that it stands under.
    """

    _: KW_ONLY
    max_tokens: int = 0
    tokens_per_image: int = 49
    tokenizer: str = "clip"
    repeat_headings: bool = False

    def check(self) -> None:
        """Look at the limits too.

        Raises:
            ConfigError: If an image and some text do not fit in ``max_tokens``.
            DataError: If the tokenizer cannot be read.
        """
        super().check()
        loaded_tokenizer(self.tokenizer)
        least = self.tokens_per_image + 2 * _MARKS + _LEAST_TEXT
        if self.tokens_per_image < 1 or (self.max_tokens != 0 and self.max_tokens < least):
            raise ConfigError(
                f"max_tokens={self.max_tokens}, tokens_per_image={self.tokens_per_image}; need "
                f"tokens_per_image >= 1 and max_tokens >= {least}, or 0 to leave documents whole"
            )


class _Remembering:
    """A tokenizer that encodes each text of a document once, for counting and for the layout."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.known: dict[str, list[int]] = {}
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        if (ids := self.known.get(text)) is None:
            ids = self.known[text] = self._tokenizer.encode(text)
        return ids

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class Splitter:
    """Splits the documents of a source, by the tokens that training will count.

    Args:
        source: The source; the documents of one that is not :class:`Interleaved` stay whole.
    """

    def __init__(self, source: Source) -> None:
        limits = source if isinstance(source, Interleaved) and source.max_tokens else None
        tokenizer = loaded_tokenizer(source.tokenizer if isinstance(source, Interleaved) else "clip")
        self._tokenizer = _Remembering(tokenizer)
        self._structural = structural_ids(tokenizer)
        # Most texts are counted again when their document is divided, and in the piece that they come to.
        self._count = lru_cache(maxsize=4096)(self._count_tokens)
        self._rules = LayoutRules(limits.tokens_per_image, limits.max_tokens) if limits else None
        if self._rules is not None:
            self._rules.check_room(self._rules.tokens_per_image)
        self._divider = self._make_divider(limits) if limits else None

    def _make_divider(self, limits: Interleaved) -> Divider:
        room, image = limits.max_tokens - _MARKS, limits.tokens_per_image + _MARKS
        return Divider(room, image, self._count, limits.repeat_headings)

    def split(self, sample: Converted, report: ConversionReport) -> Iterator[tuple[Document, int]]:
        """Yield the document, or what it is split into, with the number of text tokens of each.

        Args:
            sample: The document and its headings.
            report: Counts what was split, and what training would have cut.
        """
        self._tokenizer.known.clear()
        document, tokens = sample.document, self._count_texts(sample.document.segments)
        pieces = self._divide(sample, tokens)
        if len(pieces) < 2:
            yield document, tokens
            return
        self._add_rescued(document, report)
        report.split["documents"] += 1
        report.split["pieces"] += len(pieces)
        report.split["tokens repeated"] -= tokens
        for number, segments in enumerate(pieces):
            piece_tokens = self._count_texts(segments)
            report.split["tokens repeated"] += piece_tokens
            yield Document(f"{document.id}#{number}", document.source, segments), piece_tokens

    def _divide(self, sample: Converted, tokens: int) -> list[tuple[Segment, ...]]:
        """Return the segments of the pieces; none if the document fits, or has no text to go by."""
        divider, images = self._divider, len(sample.document.images)
        if divider is None or not tokens or tokens + images * divider.image <= divider.room:
            return []
        return divider.divide(sample.document, sample.headings)

    def _add_rescued(self, document: Document, report: ConversionReport) -> None:
        """Count what reaches no loss where the document is laid out whole."""
        assert self._rules is not None
        layout = lay_out(document, cast(Tokenizer, self._tokenizer), self._rules, np.random.default_rng(0))
        report.split["images rescued"] += len(document.images) - len(layout.images)
        report.split["tokens rescued"] += layout.cut_tokens

    def _count_texts(self, segments: tuple[Segment, ...]) -> int:
        return sum(self._count(segment.text) for segment in segments if isinstance(segment, Text))

    def _count_tokens(self, text: str) -> int:
        ids = self._tokenizer.encode(text)
        return len(ids) - sum(map(ids.count, self._structural))
