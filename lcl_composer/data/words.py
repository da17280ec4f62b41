"""Words as Unicode counts them."""

from __future__ import annotations

from itertools import islice

import regex

from lcl_composer.data.document import Document, Text

# The flag w is Unicode's default word boundary; punctuation and spaces stand between boundaries too.
_WORD_START = regex.compile(r"(?w)\b_*[\p{L}\p{N}]")


def count_words(text: str) -> int:
    """Return the words of a text by Unicode's default word boundaries (UAX #29).

    Where a script writes no spaces, the rules have no dictionary: a Chinese character, a hiragana, a Thai
    or Khmer letter counts as a word, a run of katakana as one. Punctuation counts nothing.
    """
    return len(_WORD_START.findall(text))


def document_words(document: Document) -> int:
    """Return the words of all texts of a document."""
    return sum(count_words(s.text) for s in document.segments if isinstance(s, Text))


def has_words(document: Document, least: int) -> bool:
    """Say whether the texts of a document have at least so many words; it reads no further than it must."""
    texts = (s.text for s in document.segments if isinstance(s, Text))
    starts = (start for text in texts for start in _WORD_START.finditer(text))
    return sum(1 for _ in islice(starts, least)) == least
