"""Text and names as Documents hold them."""

from __future__ import annotations

import os
import re

from lcl_composer.convert.images import Rejected

_LINE_END = re.compile(r"\r\n|\r|\n")
_TRANSLATION = re.compile(r"[a-z]{2,3}(_[A-Z]{2})?(@\w+)?\.utf8=")


def display_name(name: str) -> str:
    """Return a file name as valid Unicode, bytes that are no UTF-8 replaced."""
    return os.fsencode(name).decode("utf-8", errors="replace")


def valid_text(text: str) -> str:
    """Return the text with halves of characters (lone surrogates) replaced; JSON may hold them."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def speaks(language: str, wanted: list[str]) -> bool:
    """Say whether a language tag (``en-GB``) is one of those wanted (``en``), whatever its region."""
    primary = re.split(r"[-_]", language.strip().lower())[0]
    return primary in {re.split(r"[-_]", one.strip().lower())[0] for one in wanted}


def caption_text(value: object) -> str:
    """Return a caption on one line.

    Raises:
        Rejected: If it is null, no text, or blank.
    """
    if not isinstance(value, str):
        raise Rejected("caption missing")
    if not (caption := one_line(value)):
        raise Rejected("caption empty")
    return caption


def first_line(text: str) -> str:
    """Return the first line of a caption file that is not blank, on which Unicode's own separators end none.

    Raises:
        Rejected: If there is none, or only one in another language as Tux Paint writes it (``de.utf8=``).
    """
    line = next((line for line in _LINE_END.split(text) if line.strip()), "")
    return caption_text("" if _TRANSLATION.match(line) else line)


def one_line(text: str) -> str:
    """Collapse every run of white space to one space, none at the ends."""
    return " ".join(text.split())
