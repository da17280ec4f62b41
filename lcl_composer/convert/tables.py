"""Table files of all kinds, cut into parts that workers read by themselves, and their rows."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lcl_composer.convert.columnar import BROKEN, columnar_parts, columnar_rows, read_schema, why_broken
from lcl_composer.convert.encoding import find_file_encoding
from lcl_composer.convert.files import suffix_of
from lcl_composer.convert.images import Rejected
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Part
from lcl_composer.convert.text_tables import TextPart, csv_rows, json_rows, read_header, split_lines
from lcl_composer.errors import DataError

COLUMNAR = frozenset({".parquet", ".arrow"})
_SEPARATED = frozenset({".csv", ".tsv", ".csv.gz", ".tsv.gz"})
SUFFIXES = COLUMNAR | _SEPARATED | {".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"}
#: What broken files make pyarrow and gzip raise.
_BROKEN = (*BROKEN, EOFError, zlib.error)
#: Bytes of text a part; a row names an image of perhaps 50 KB.
_PART_BYTES = 1 << 20


def table_parts(root: Path, name: str, size: int = _PART_BYTES) -> Iterator[Part]:
    """Yield the parts of a table file: groups of rows of Parquet, stretches of whole records of text."""
    path = root / name
    if suffix_of(path.name) in COLUMNAR:
        yield from columnar_parts(path, name)
        return
    try:
        if not path.stat().st_size:
            raise EOFError("empty")
        codec, guess = find_file_encoding(path)
        for start, end, line in split_lines(path, suffix_of(path.name) in _SEPARATED, size, codec):
            yield Part(f"{name}:{line}", (name,), [start, end, line, codec, guess])
    except _BROKEN:
        yield Part(name, (name,), [0, sys.maxsize, 1, "utf-8", ""])  # reading it will say where it breaks


def table_rows(
    root: Path, part: Part, columns: list[str], report: ConversionReport
) -> Iterator[tuple[str, dict[str, Any] | Rejected]]:
    """Yield a part's rows with their names, ``file:row`` of Parquet and ``file:line`` of text.

    Args:
        root: Folder that the names of parts start from.
        part: One of :func:`table_parts`.
        columns: The columns wanted of Parquet; those a file lacks are absent from its rows.
        report: Counts a broken file, named with the row that it breaks at, and texts of odd encoding.
    """
    name, path = part.files[0], root / part.files[0]
    here = part.name
    try:
        if not path.stat().st_size:
            report.break_file("file empty", name)
            return
        if suffix_of(path.name) in COLUMNAR:
            rows = columnar_rows(path, name, columns, part.items, report)
        else:
            *place, guess = part.items
            if guess:
                report.mend(f"encoding guessed: {guess}", part.name)
            read = csv_rows if suffix_of(path.name) in _SEPARATED else json_rows
            rows = read(path, name, TextPart(*place), report)
        for number, row in rows:
            here = f"{name}:{number + 1}"
            yield f"{name}:{number}", row
    except _BROKEN as error:
        report.break_file(why_broken(error), here)


def check_columns(path: Path, columns: list[str], hint: str = "") -> None:
    """Check that a table has these columns; JSONL names them a line, what is broken is counted later.

    Args:
        path: The table.
        columns: Those it must have.
        hint: What helps where one is missing, for the message.

    Raises:
        DataError: If it lacks one, or has several of its name.
    """
    try:
        if not path.stat().st_size:
            return
        if suffix_of(path.name) in COLUMNAR:
            found = read_schema(path).names
        elif suffix_of(path.name) in _SEPARATED:
            found = read_header(path, find_file_encoding(path)[0]).names
        else:
            return
    except _BROKEN:
        return
    if missing := [column for column in columns if column not in found]:
        helps = f"; {hint}" if hint else ""
        raise DataError(f"{path}: no column {missing[0]!r}; it has {', '.join(found) or 'none'}{helps}")
    if twice := [column for column in columns if found.count(column) > 1]:
        raise DataError(f"{path}: several columns are called {twice[0]!r}; call the others otherwise")
