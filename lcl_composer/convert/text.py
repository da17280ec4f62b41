"""Text and names of unknown encoding."""

from __future__ import annotations

import codecs
import os
import re

from lcl_composer.convert.images import Rejected

_META_CHARSET = re.compile(
    rb"""<(?:meta|\?xml)[^>]{0,300}?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.I
)

#: Encodings a page may name. Python knows others that are no character sets, or that cost much to decode.
_CHARSETS = re.compile(
    r"iso-?8859-?([2-9]|1\d)|windows-?\d{3,4}|cp-?\d{3,4}|koi8-?[ru]|gbk|gb2312|gb18030|big5|shift[_-]jis|euc-?(jp|kr)",
    re.I,
)


def decode_text(data: bytes) -> str:
    """Decode as UTF-16 by its mark, as UTF-8 (its mark dropped), else as Windows-1252 like browsers."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def decode_html(data: bytes) -> str:
    """Decode a web page by the encoding it names in its first 2048 bytes, else as :func:`decode_text`.

    That a page names UTF-8 or Latin-1 says little; those go the second way, as browsers nearly do.
    """
    named = _META_CHARSET.search(data[:2048])
    charset = named[1].decode("ascii") if named else ""
    if _CHARSETS.fullmatch(charset):
        try:
            return data.decode(charset)
        except (LookupError, UnicodeDecodeError):
            pass  # pages name encodings that they are not in
    return decode_text(data)


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


def one_line(text: str) -> str:
    """Collapse every run of white space to one space, none at the ends."""
    return " ".join(text.split())
