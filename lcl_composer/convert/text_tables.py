"""CSV and JSONL by one grammar each, cut into parts that workers read by themselves.

Bytes are read as Latin-1, in which every byte is a character, so that lines, quotes and delimiters have
places in the file; each field is then decoded as what the file is in. UTF-16 has no such bytes and is read as
UTF-8, in one part; so is a file compressed by gzip.
"""

from __future__ import annotations

import csv
import gzip
import io
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lcl_composer.convert import files
from lcl_composer.convert.encoding import decode_as
from lcl_composer.convert.files import open_unzipped, parse_json
from lcl_composer.convert.images import Rejected
from lcl_composer.convert.report import ConversionReport

#: A longer field is what an unclosed quote runs over; a picture in Base64 is shorter.
_MAX_FIELD = 1 << 24
_BOM = "\xef\xbb\xbf"
_DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file.

    Attributes:
        number: Its number, from 1.
        start: Offset of its first byte.
        end: Offset behind its last byte.
        text: Its bytes as Latin-1, with the line break; None if it is too long to be a record.
    """

    number: int
    start: int
    end: int
    text: str | None


@dataclass(frozen=True, slots=True)
class Record:
    """The lines of one record, and its fields as Latin-1; a Rejected if it is none."""

    number: int
    start: int
    end: int
    fields: list[str] | Rejected


def read_text_lines(path: Path, codec: str, start: int = 0, number: int = 1) -> Iterator[Line]:
    """Yield the lines of a file from a place on; they end as in universal newlines."""
    with open_unzipped(path) as raw:
        raw.seek(start)
        wide = _is_wide(codec)
        file = io.TextIOWrapper(raw, codec if wide else "latin-1", errors="replace", newline="")
        while text := file.readline(files.MAX_LINE):
            size, whole = len(text), True
            while len(text) == files.MAX_LINE and text[-1] not in "\r\n":
                whole = False
                if not (text := file.readline(files.MAX_LINE)):
                    break
                size += len(text)
            if wide:
                text = text.encode().decode("latin-1")
            shown = text.removeprefix(_BOM) if start == 0 else text
            yield Line(number, start, start + size, shown if whole else None)
            start, number = start + size, number + 1


def read_csv(
    lines: Iterator[Line], delimiter: str, width: int | None = None, spaced: bool = False
) -> Iterator[Record]:
    """Yield the records of a CSV file (RFC 4180; a quote inside an unquoted field is a character).

    Where a line begins no record, because a quote is never closed or text follows the closing one, that line
    alone is lost: the next record is looked for on the next line.

    Args:
        lines: The lines, from the start of a record on.
        delimiter: Between fields.
        width: Fields a record; other records of several lines are taken for an unclosed quote.
        spaced: Spaces behind a delimiter are no part of the field, which may be quoted behind them.
    """
    csv.field_size_limit(_MAX_FIELD)
    ahead: deque[Line] = deque()  # lines to be read again
    used: list[Line] = []  # lines of this record

    def feed() -> Iterator[str]:
        while (line := ahead.popleft() if ahead else next(lines, None)) is not None:
            used.append(line)
            if line.text is None:
                raise csv.Error("line too long")
            yield line.text

    def begin() -> Iterator[list[str]]:
        return csv.reader(feed(), delimiter=delimiter, strict=True, skipinitialspace=spaced)

    reader = begin()
    while True:
        used.clear()
        try:
            fields: list[str] | Rejected = next(reader)
        except StopIteration:
            return
        except csv.Error:
            fields = Rejected("not CSV, or cut off")
        if isinstance(fields, Rejected) or (len(used) > 1 and width not in (None, len(fields))):
            fields = Rejected("not CSV, or cut off")
            ahead.extendleft(reversed(used[1:]))
            del used[1:]
            reader = begin()
        if fields:  # a blank line is no record
            yield Record(used[0].number, used[0].start, used[-1].end, fields)


@dataclass(frozen=True, slots=True)
class TextPart:
    """A stretch of a text file: offsets of its first byte and that behind its last, its first line, codec."""

    start: int
    end: int
    line: int
    codec: str


@dataclass(frozen=True, slots=True)
class Header:
    """The first record of a CSV file: the names of its columns, and what stands between fields.

    Attributes:
        names: The names.
        delimiter: The sign between fields.
        spaced: A space follows it, as in files written by hand.
    """

    names: list[str]
    delimiter: str
    spaced: bool = False

    def records(self, lines: Iterator[Line]) -> Iterator[Record]:
        """Yield the records of lines that begin with one."""
        return read_csv(lines, self.delimiter, len(self.names), self.spaced)


def read_header(path: Path, codec: str) -> Header:
    """Return the header; fields are separated by what cuts it into the most: ``, ; tab |``."""
    found = [Header(_first_record(path, codec, delimiter), delimiter) for delimiter in _DELIMITERS]
    best = max(found, key=lambda header: len(header.names))
    names = best.names
    spaced = len(names) > 1 and all(name.startswith(" ") for name in names[1:])
    if spaced:
        names = _first_record(path, codec, best.delimiter, spaced)
    unread = ConversionReport("", "", {})  # what is wrong with a name shows when a column is missing
    return Header([_field(name, codec, "", unread).strip() for name in names], best.delimiter, spaced)


def _first_record(path: Path, codec: str, delimiter: str, spaced: bool = False) -> list[str]:
    record = next(read_csv(read_text_lines(path, codec), delimiter, spaced=spaced), None)
    return record.fields if record and isinstance(record.fields, list) else []


def split_lines(path: Path, quoted: bool, size: int, codec: str = "utf-8") -> Iterator[tuple[int, int, int]]:
    """Cut a text file into stretches of about ``size`` bytes that end with a record.

    Args:
        path: The file.
        quoted: CSV, else a record a line.
        size: Bytes a stretch.
        codec: What it is in.

    Yields:
        Offset of the first byte, that behind the last, and the number of the first line, from 1.
    """
    records: Iterator[Line | Record] = read_text_lines(path, codec)
    if quoted:
        header = read_header(path, codec)
        records = header.records(read_text_lines(path, codec))
    with open_unzipped(path) as file:
        whole = _is_wide(codec) or isinstance(file, gzip.GzipFile)  # no place in it can be gone to
    size = sys.maxsize if whole else size
    start, end, number = 0, 0, 1
    for record in records:
        if record.start - start >= size:
            yield start, record.start, number
            start, number = record.start, record.number
        end = record.end
    if end > start:
        yield start, end, number


def csv_rows(
    path: Path, name: str, part: TextPart, report: ConversionReport
) -> Iterator[tuple[int, dict[str, Any] | Rejected]]:
    """Yield the rows of a stretch of CSV by their line numbers."""
    header = read_header(path, part.codec)
    lines = read_text_lines(path, part.codec, part.start, part.line)
    at_header = part.start == 0
    for record in header.records(lines):
        if record.start >= part.end:
            return
        if at_header:
            at_header = False
        elif isinstance(record.fields, Rejected):
            yield record.number, record.fields
        elif len(record.fields) != len(header.names):
            yield record.number, Rejected("another number of fields than the header")
        else:
            where = f"{name}:{record.number}"
            values = [_field(field, part.codec, where, report) for field in record.fields]
            yield record.number, dict(zip(header.names, values, strict=True))


def json_rows(
    path: Path, name: str, part: TextPart, report: ConversionReport
) -> Iterator[tuple[int, dict[str, Any] | Rejected]]:
    """Yield the objects of a stretch of JSONL by their line numbers; blank lines are none."""
    for line in read_text_lines(path, part.codec, part.start, part.line):
        if line.start >= part.end:
            return
        try:
            if line.text is None:
                raise Rejected(f"line over {files.MAX_LINE >> 20} MiB")
            if text := line.text.strip():
                yield line.number, parse_json(_field(text, part.codec, f"{name}:{line.number}", report))
        except Rejected as reason:
            yield line.number, reason


def _field(value: str, codec: str, where: str, report: ConversionReport) -> str:
    """Decode a piece of a line that is its bytes as Latin-1."""
    if value.isascii():
        return value
    data = value.encode("latin-1")
    if _is_single_byte(codec):
        with suppress(UnicodeDecodeError):
            text = data.decode()
            report.mend("UTF-8 among lines in another encoding", where)
            return text
    return decode_as(data, "utf-8" if _is_wide(codec) else codec, where, report)


@cache
def _is_single_byte(codec: str) -> bool:
    """Say whether each byte is a character; what is valid UTF-8 too can then hardly be anything else."""
    return all(len(pair.decode(codec, "replace")) == len(pair) for pair in (b"\xb0\xa1", b"\xe3\x82"))


def _is_wide(codec: str) -> bool:
    return codec.startswith(("utf-16", "utf-32"))
