"""One policy for the encoding of every text: pages, captions, tables, tars, Parquet strings.

In this order: a byte order mark; UTF-16 by where its zero bytes fall; UTF-8, even with a stray or cut byte;
the encoding that a page names; else the guess of chardetng, the detector of Firefox. Labels are those of the
WHATWG Encoding Standard (https://encoding.spec.whatwg.org/). What an encoding does not know becomes U+FFFD.
Guesses and such characters are counted in the report.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webencodings
from chardetng_py import EncodingDetector

from lcl_composer.convert.files import open_unzipped
from lcl_composer.convert.images import Rejected
from lcl_composer.convert.report import ConversionReport

REPLACED = "bytes that are no text became U+FFFD"

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: Python's codecs that know more characters than those of the same name, as browsers do.
_CODECS = {"gbk": "gb18030", "euc-jp": "euc_jis_2004", "iso-2022-jp": "iso2022_jp_ext"}
#: Labels that say nothing: a page that can be searched for one is no UTF-16.
_EMPTY_LABELS = frozenset({"utf-8", "utf-16le", "utf-16be", "replacement", "x-user-defined"})
#: Encodings in 7 bits that browsers refuse too, by what text in them holds: it would pass for ASCII.
_UNREAD = {"utf-7": b"+", "unicode-1-1-utf-7": b"+", "hz-gb-2312": b"~{"}
_UNREAD |= dict.fromkeys(("iso-2022-kr", "csiso2022kr", "iso-2022-cn", "iso-2022-cn-ext"), b"\x0e")
#: Characters beyond ASCII from which text that is valid UTF-8 is so by no accident.
_SURE = 4

_COMMENT = re.compile(rb"<!--.*?-->", re.S)
_XML_ENCODING = re.compile(rb"""\s*<\?xml[^>]{0,200}?\sencoding\s*=\s*["']([\w.:-]+)""")
_META = re.compile(rb"<meta[\s/]([^>]{0,500})>", re.I)
_ATTRIBUTE = re.compile(rb"""([a-z-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.I)
_CONTENT_CHARSET = re.compile(rb"""charset\s*=\s*["']?\s*([^\s"';]+)""", re.I)
#: Bytes of a page that are searched for the encoding it names.
_HEAD = 1 << 12


class _Evidence:
    """What the bytes of a text say about its encoding, counted piece by piece."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.start = b""
        self.characters = 0  # valid in UTF-8, beyond ASCII
        self.invalid = 0  # bytes
        self.size = 0
        self.zeros = [0, 0]  # at even and at odd places
        self.escapes = 0
        utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        for chunk in chunks:
            self.start = self.start or chunk[:4]
            self._count(chunk, utf8.decode(chunk))
        self.cut = utf8.getstate()[0]  # an unfinished character at the end

    def _count(self, chunk: bytes, text: str) -> None:
        if b"\0" in chunk:
            self.zeros[self.size % 2] += chunk[::2].count(0)
            self.zeros[1 - self.size % 2] += chunk[1::2].count(0)
        self.size += len(chunk)
        self.escapes += chunk.count(b"\x1b")
        if not text.isascii():
            valid = text.encode("utf-8", "ignore").decode()
            self.invalid += len(text) - len(valid)
            self.characters += len(valid) - len(valid.encode("ascii", "ignore"))

    def bom(self) -> str | None:
        return next((name for mark, name in _BOMS if self.start.startswith(mark)), None)

    def utf16(self) -> str | None:
        """Some zeros, nearly all on one side: the halves of ASCII characters. The other side's are of 一."""
        few, many = sorted(self.zeros)
        if many < 2 or many <= 2 * few or 32 * many < self.size or (few and not self.invalid):
            return None
        return "utf-16-le" if self.zeros[1] == many else "utf-16-be"

    def is_utf8(self, named: str | None) -> bool:
        if named is not None:
            least = 1 if named == "windows-1252" else _SURE
            return self.characters >= max(least, 4 * self.invalid)
        if self.characters or self.invalid:
            return self.characters >= self.invalid
        if self.cut:  # a single byte of one more likely ends a word of another encoding, but for Â and Ã
            return len(self.cut) > 1 or self.cut in (b"\xc2", b"\xc3")
        return not self.escapes  # ISO-2022-JP is ASCII and escapes


def find_encoding(chunks: Iterable[bytes], label: str = "") -> tuple[str, str]:
    """Find the encoding of a text that is given in pieces.

    Args:
        chunks: The text's bytes; they may be gone through twice.
        label: The encoding that it says it is in, or an empty string.

    Returns:
        Python's codec, and the encoding's name if it is a guess, else an empty string.
    """
    evidence = _Evidence(chunks)
    if certain := evidence.bom() or evidence.utf16():
        return certain, ""
    found = webencodings.lookup(label) if label else None
    named = found.name if found is not None and found.name not in _EMPTY_LABELS else None
    if evidence.is_utf8(named):
        return "utf-8", ""
    if named is not None:
        wrong = evidence.characters and not evidence.invalid and not _fits(b"".join(chunks), _codec(named))
        return ("utf-8" if wrong else _codec(named)), ""
    guess = _guess(chunks)
    return _codec(guess), guess


def _guess(chunks: Iterable[bytes]) -> str:
    guesser = EncodingDetector()
    for chunk in chunks:
        guesser.feed(chunk, last=False)
    guesser.feed(b"", last=True)
    return guesser.guess(tld=None, allow_utf8=False).lower()


def find_file_encoding(path: Path) -> tuple[str, str]:
    """Find the encoding of a text file as :func:`find_encoding` does; nearly all are read once for it.

    Raises:
        OSError: If it cannot be read.
    """
    utf8 = codecs.getincrementaldecoder("utf-8")()
    try:
        for chunk in _Chunks(path):
            utf8.decode(chunk)
            if b"\0" in chunk or b"\x1b" in chunk:
                return find_encoding(_Chunks(path))
        utf8.decode(b"", final=True)
    except UnicodeDecodeError:
        return find_encoding(_Chunks(path))
    return "utf-8", ""


@dataclass(frozen=True)
class _Chunks:
    """The bytes of a file, read anew each time."""

    path: Path

    def __iter__(self) -> Iterator[bytes]:
        with open_unzipped(self.path) as file:
            while chunk := file.read(1 << 20):
                yield chunk


def decode_as(data: bytes, codec: str, name: str, report: ConversionReport) -> str:
    """Decode; what the encoding does not know becomes U+FFFD, which is counted. A mark at the front goes.

    Args:
        data: The bytes.
        codec: From :func:`find_encoding`.
        name: The sample, for the report.
        report: Counts the text if something in it is invalid.
    """
    try:
        text = data.decode(codec)
    except UnicodeDecodeError:
        text = data.decode(codec, errors="replace")
        report.mend(REPLACED, name)
    return text.removeprefix("\ufeff")


def decode_text(data: bytes, name: str, report: ConversionReport, label: str = "") -> str:
    """Decode a whole text by the policy of this module.

    Args:
        data: The bytes.
        name: The sample, for the report.
        report: Counts the text if its encoding is a guess or something in it is invalid.
        label: The encoding that it says it is in.
    """
    if b"\0" not in data and b"\x1b" not in data and (_means_utf8(label) or data.isascii()):
        with suppress(UnicodeDecodeError):  # nearly all texts, without looking for evidence
            return data.decode().removeprefix("\ufeff")
    codec, guess = find_encoding([data], label)
    if guess:
        report.mend(f"encoding guessed: {guess}", name)
    return decode_as(data, codec, name, report)


def text_value(value: Any, name: str, report: ConversionReport) -> Any:
    """Return the value of a column of texts; bytes, as Spark and Impala may store them, are decoded."""
    return decode_text(value, name, report) if isinstance(value, bytes) else value


def decode_html(data: bytes, name: str, report: ConversionReport) -> str:
    """Decode a web page, which may name its encoding in a ``<meta>`` or an XML declaration.

    Raises:
        Rejected: If it is in UTF-7 or another encoding that nobody reads.
    """
    label = named_encoding(data)
    mark = _UNREAD.get(label.lower())
    if mark is not None and mark in data and data.isascii():
        raise Rejected(f"encoding that is not read: {label.lower()}")
    return decode_text(data, name, report, label)


def named_encoding(page: bytes) -> str:
    """Return the label of the encoding that a page names near its start, or an empty string."""
    head = page[:_HEAD]
    if declared := _XML_ENCODING.match(head):
        return declared[1].decode("ascii")
    for meta in _META.finditer(_COMMENT.sub(b"", head)):
        values = {key.lower(): a or b or c for key, a, b, c in _ATTRIBUTE.findall(meta[1])}
        label = values.get(b"charset")
        if label is None and values.get(b"http-equiv", b"").lower() == b"content-type":
            content = _CONTENT_CHARSET.search(values.get(b"content", b""))
            label = content and content[1]
        if label:
            return label.strip().decode("ascii", "replace")
    return ""


def _means_utf8(label: str) -> bool:
    """Say whether a label leaves UTF-8 as the likeliest encoding."""
    found = webencodings.lookup(label) if label else None
    return found is None or found.name in _EMPTY_LABELS


def _fits(data: bytes, codec: str) -> bool:
    try:
        data.decode(codec)
    except UnicodeDecodeError:
        return False
    return True


def _codec(name: str) -> str:
    found = webencodings.lookup(name)
    return _CODECS.get(name) or (found.codec_info.name if found is not None else name)
