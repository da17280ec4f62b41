"""Rows of CSV, JSONL and Parquet files, cut into parts that workers read by themselves."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lcl_composer.convert.files import parse_json, read_lines
from lcl_composer.convert.images import Rejected
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Part
from lcl_composer.errors import DataError

SUFFIXES = frozenset({".csv", ".jsonl", ".parquet"})
#: Bytes of text, and rows of Parquet, a part. A row names an image of perhaps 50 KB.
_PART_BYTES = 1 << 20
_PART_ROWS = 5000
#: Rows of Parquet in memory at a time; a row may hold the bytes of a whole page's images.
_BATCH_ROWS = 16


def table_parts(root: Path, name: str, size: int = _PART_BYTES) -> Iterator[Part]:
    """Yield the parts of a table file: row groups of Parquet, stretches of whole records of text."""
    path = root / name
    if path.suffix.lower() == ".parquet":
        yield from _parquet_parts(path, name)
        return
    quoted = path.suffix.lower() == ".csv"
    for start, end, line in split_lines(path, quoted, size):
        yield Part(f"{name}:{line}", (name,), [start, end, line])


def table_rows(
    root: Path, part: Part, columns: list[str], report: ConversionReport
) -> Iterator[tuple[str, dict[str, Any] | Rejected]]:
    """Yield a part's rows with their names, ``file:row`` of Parquet and ``file:line`` of text.

    Args:
        root: Folder that the names of parts start from.
        part: One of :func:`table_parts`.
        columns: The columns wanted of Parquet; those a file lacks are absent from its rows.
        report: Counts a broken file.
    """
    name, path = part.files[0], root / part.files[0]
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            rows = _parquet_rows(path, columns, *part.items)
        else:
            rows = (_csv_rows if suffix == ".csv" else _json_rows)(path, *part.items)
        for number, row in rows:
            yield f"{name}:{number}", row
    except (OSError, pa.ArrowException) as error:
        report.break_file(f"unreadable or cut off ({type(error).__name__})", part.name)


def check_columns(path: Path, columns: list[str]) -> None:
    """Check that a CSV or Parquet file has these columns; one that cannot be read is counted later.

    Raises:
        DataError: If it lacks one.
    """
    try:
        if path.suffix.lower() == ".parquet":
            found = pq.read_schema(path).names
        elif path.suffix.lower() == ".csv":
            found = _header(path)
        else:
            return
    except (OSError, pa.ArrowException, csv.Error):
        return
    if missing := [column for column in columns if column not in found]:
        raise DataError(f"{path}: no column {missing[0]!r}; it has {', '.join(found)}")


def split_lines(path: Path, quoted: bool, size: int) -> Iterator[tuple[int, int, int]]:
    """Cut a text file into stretches of about ``size`` bytes that end with a line.

    Args:
        path: The file.
        quoted: A line break inside double quotes ends no record, as in CSV.
        size: Bytes a stretch.

    Yields:
        Offset of the first byte, that behind the last, and the number of the first line, from 1.
    """
    start = position = 0
    line = seen = 1
    odd = 0  # parity of the quotes so far
    with open(path, "rb") as file:
        while chunk := file.read(size):
            odd ^= quoted and chunk.count(b'"') & 1
            cut = _last_break(chunk, odd, quoted)
            if cut is not None:
                yield start, position + cut, line
                start, line = position + cut, seen + chunk.count(b"\n", 0, cut)
            position += len(chunk)
            seen += chunk.count(b"\n")
    if position > start:
        yield start, position, line


def _last_break(chunk: bytes, odd: int, quoted: bool) -> int | None:
    """Return the place behind the last line break outside quotes; ``odd`` is the parity at the end."""
    at = len(chunk)
    while (newline := chunk.rfind(b"\n", 0, at)) >= 0:
        odd ^= quoted and chunk.count(b'"', newline, at) & 1
        if not odd:
            return newline + 1
        at = newline
    return None


def _lines(path: Path, start: int, end: int, first: int) -> Iterator[tuple[int, bytes | Rejected]]:
    with open(path, "rb") as file:
        file.seek(start)
        for number, line in read_lines(file, first):
            yield number, line
            if file.tell() >= end:
                return


def _json_rows(path: Path, start: int, end: int, first: int) -> Iterator[tuple[int, dict | Rejected]]:
    for number, line in _lines(path, start, end, first):
        try:
            if isinstance(line, Rejected):
                raise line
            yield number, parse_json(line)
        except Rejected as reason:
            yield number, reason


def _header(path: Path) -> list[str]:
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader(file), [])


def _csv_rows(path: Path, start: int, end: int, first: int) -> Iterator[tuple[int, dict | Rejected]]:
    header = _header(path)
    here, at_header = first, start == 0

    def text() -> Iterator[str]:
        nonlocal here
        for number, line in _lines(path, start, end, first):
            here = number
            yield "" if isinstance(line, Rejected) else line.decode("utf-8-sig", errors="replace")

    reader = csv.reader(text(), strict=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield here, Rejected("not CSV, or cut off")
            continue
        if at_header:
            at_header = False
        elif len(row) != len(header):
            yield here, Rejected("another number of fields than the header")
        else:
            yield here, dict(zip(header, row, strict=True))


def _parquet_parts(path: Path, name: str) -> Iterator[Part]:
    try:
        facts = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        yield Part(name, (name,), [0, 1, 0])  # reading it will say what is wrong
        return
    begin = row = rows = 0
    for group in range(facts.num_row_groups):
        rows += facts.row_group(group).num_rows
        if rows >= _PART_ROWS or group == facts.num_row_groups - 1:
            yield Part(f"{name}:{row}", (name,), [begin, group + 1, row])
            begin, row, rows = group + 1, row + rows, 0


def _parquet_rows(
    path: Path, columns: list[str], begin: int, end: int, first: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    # Without the pre-buffer pages are read as they are needed, not a row group's columns at once.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        wanted = [column for column in columns if column in file.schema_arrow.names]
        batches = file.iter_batches(
            _BATCH_ROWS, row_groups=list(range(begin, end)), columns=wanted, use_threads=False
        )
        for batch in batches:
            for row in batch.to_pylist():
                yield first, row
                first += 1
