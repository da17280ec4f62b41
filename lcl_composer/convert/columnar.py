"""Rows of Parquet files, and of the Arrow files that Hugging Face's ``datasets`` keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lcl_composer.convert.encoding import decode_text
from lcl_composer.convert.images import Rejected
from lcl_composer.convert.memory import TooLarge, bounded, bounded_memory, check_rows
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Part

#: What broken files make pyarrow raise; ValueError is for names that are no UTF-8.
BROKEN = (OSError, ValueError, pa.ArrowException)
_PART_ROWS = 5000
#: Rows in memory at a time; a row may hold the bytes of a whole page's images.
_BATCH_ROWS = 16


def is_arrow(path: Path) -> bool:
    """Say whether a file is called Arrow's, not Parquet."""
    return path.suffix.lower() == ".arrow"


def read_schema(path: Path) -> pa.Schema:
    """Return the schema of a Parquet or Arrow file.

    Raises:
        OSError, ValueError, pa.ArrowException: If it is broken.
    """
    with bounded_memory(_mapped(path)):
        if not is_arrow(path):
            return pq.read_schema(path)
        with pa.memory_map(str(path)) as file:
            return _open_arrow(file).schema


def why_broken(error: BaseException) -> str:
    """Return what a file is counted under of which reading it raised ``error``."""
    return str(error) if isinstance(error, TooLarge) else f"unreadable or cut off ({type(error).__name__})"


def _mapped(path: Path) -> int:
    """Bytes of a file that reading it maps into memory."""
    return path.stat().st_size if is_arrow(path) else 0


def columnar_parts(path: Path, name: str) -> Iterator[Part]:
    """Yield groups of rows: row groups of Parquet, record batches of Arrow; a broken file as one part."""
    try:
        with bounded_memory(_mapped(path)):
            sizes = _arrow_sizes(path) if is_arrow(path) else _group_sizes(path)
    except BROKEN:
        yield Part(name, (name,), [0, 1 << 31, 0])  # reading it will say where it breaks
        return
    begin = row = rows = 0
    for group, size in enumerate(sizes):
        rows += size
        if rows >= _PART_ROWS or group == len(sizes) - 1:
            yield Part(f"{name}:{row}", (name,), [begin, group + 1, row])
            begin, row, rows = group + 1, row + rows, 0


def _group_sizes(path: Path) -> list[int]:
    facts = pq.read_metadata(path)
    return [facts.row_group(group).num_rows for group in range(facts.num_row_groups)]


def _arrow_sizes(path: Path) -> list[int]:
    with pa.memory_map(str(path)) as file:
        return [batch.num_rows for batch in _arrow_batches(_open_arrow(file))]


def columnar_rows(
    path: Path, name: str, columns: list[str], items: list[int], report: ConversionReport
) -> Iterator[tuple[int, dict[str, Any] | Rejected]]:
    """Yield the rows of a part with their numbers; columns that the file lacks are absent from them.

    Args:
        path: The file.
        name: What the report calls it.
        columns: The columns wanted.
        items: Of the part: first row group or batch, that behind the last, number of the first row.
        report: Counts strings that are no UTF-8.
    """
    begin, end, number = items
    part = (_arrow_part if is_arrow(path) else _parquet_part)(path, columns, begin, end)
    for batch in bounded(_numbered(part, name, number, report), _mapped(path)):
        yield from batch


def _numbered(
    batches: Iterator[pa.RecordBatch], name: str, number: int, report: ConversionReport
) -> Iterator[list[tuple[int, dict[str, Any] | Rejected]]]:
    """Yield the rows of each batch with their numbers."""
    for batch in batches:
        yield list(enumerate(_rows(batch, name, number, report), number))
        number += batch.num_rows


def _parquet_part(path: Path, columns: list[str], begin: int, end: int) -> Iterator[pa.RecordBatch]:
    # Without the pre-buffer pages are read as they are needed, not a row group's columns at once.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        check_rows(file.metadata.num_rows, path)
        wanted = [column for column in columns if column in file.schema_arrow.names]
        yield from file.iter_batches(
            _BATCH_ROWS, row_groups=list(range(begin, end)), columns=wanted, use_threads=False
        )


def _arrow_part(path: Path, columns: list[str], begin: int, end: int) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as file:
        for index, batch in enumerate(_arrow_batches(_open_arrow(file))):
            if index >= end:
                return
            if index >= begin:
                check_rows(batch.num_rows, path)
                whole = batch.select([name for name in columns if name in batch.schema.names])
                for start in range(0, whole.num_rows, _BATCH_ROWS):
                    yield whole.slice(start, _BATCH_ROWS)


def _open_arrow(file: pa.NativeFile) -> pa.RecordBatchStreamReader | pa.RecordBatchFileReader:
    """``datasets`` writes streams; other programs the format with an index at the end (Feather)."""
    try:
        return pa.ipc.open_stream(file)
    except pa.ArrowInvalid:
        file.seek(0)
        return pa.ipc.open_file(file)


def _arrow_batches(reader: pa.RecordBatchStreamReader | pa.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchFileReader):
        return (reader.get_batch(index) for index in range(reader.num_record_batches))
    return iter(reader)


def _rows(
    batch: pa.RecordBatch, name: str, first: int, report: ConversionReport
) -> Iterator[dict[str, Any] | Rejected]:
    """Return a batch's rows; one that cannot be read costs itself alone."""
    try:
        yield from batch.to_pylist()
        return
    except MemoryError:
        raise
    except (ValueError, OverflowError, pa.ArrowException):
        pass
    for index in range(batch.num_rows):
        try:
            row = batch.slice(index, 1)
            where = f"{name}:{first + index}"
            yield {
                field.name: _values(row.column(place), where, report)[0]
                for place, field in enumerate(row.schema)
            }
        except MemoryError:
            raise
        except (ValueError, OverflowError, pa.ArrowException) as error:
            yield Rejected(f"cell that cannot be read ({type(error).__name__})")


def _values(column: pa.Array, where: str, report: ConversionReport) -> list[Any]:
    """Return a column's values, strings decoded as all texts are."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    raw = column.cast(_as_bytes(column.type)).to_pylist()
    return [_decode(value, column.type, where, report) for value in raw]


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """Return a type with its strings as bytes, which may be anything."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(pa.field(kind.value_field.name, _as_bytes(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _as_bytes(field.type)) for field in kind])
    return kind


def _decode(value: Any, kind: pa.DataType, where: str, report: ConversionReport) -> Any:
    if value is None:
        return None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return decode_text(value, where, report)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_decode(item, kind.value_type, where, report) for item in value]
    if pa.types.is_struct(kind):
        return {field.name: _decode(value[field.name], field.type, where, report) for field in kind}
    return value
