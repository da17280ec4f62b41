"""Words as Unicode counts them."""

from __future__ import annotations

import re
from itertools import islice

import regex

from lcl_composer.data.document import Document, Text

# The flag w is Unicode's default word boundary; punctuation and spaces stand between boundaries too.
_WORD_START = regex.compile(r"(?w)\b_*[\p{L}\p{N}]")
#: The same for ASCII, faster: runs of letters, digits and underscores, what joins two of them, and which of
#: them are underscores only.
_RUNS = bytes(code if (chr(code).isalnum() and code < 128) or code == ord("_") else 32 for code in range(256))
_LINES = re.compile(r"(?<![A-Za-z0-9_])_+(?![A-Za-z0-9_])")
_JOINTS = re.compile(r"['.:](?<=[A-Za-z].)(?=[A-Za-z])|['.,;](?<=[0-9].)(?=[0-9])", re.DOTALL)


def count_words(text: str) -> int:
    """Return the words of a text by Unicode's default word boundaries (UAX #29).

    Where a script writes no spaces, the rules have no dictionary: a Chinese character, a hiragana, a Thai
    or Khmer letter counts as a word, a run of katakana as one. Punctuation counts nothing.
    """
    if text.isascii():
        count = len(text.encode().translate(_RUNS).split()) - len(_JOINTS.findall(text))
        return count - len(_LINES.findall(text)) if "_" in text else count
    return len(_WORD_START.findall(text))


def document_words(document: Document) -> int:
    """Return the words of all texts of a document."""
    return sum(count_words(s.text) for s in document.segments if isinstance(s, Text))


def has_words(document: Document, least: int) -> bool:
    """Say whether the texts of a document have at least so many words; it reads no further than it must."""
    texts = (s.text for s in document.segments if isinstance(s, Text))
    starts = (start for text in texts for start in _WORD_START.finditer(text))
    return sum(1 for _ in islice(starts, least)) == least
