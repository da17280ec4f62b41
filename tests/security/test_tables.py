"""A Parquet or Arrow file from a stranger: a few kilobytes that unpack to far more than memory.

A fresh process converts: in one that has read tables before, pyarrow holds memory that it asks no system for.
"""

from __future__ import annotations

import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcl_composer.convert import memory
from lcl_composer.convert.img2dataset import Img2Dataset
from lcl_composer.convert.obelics import Obelics
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Source
from lcl_composer.convert.table import Table
from tests.convert.samples import picture, run

MIB = 1 << 20
#: Bytes a step in these tests, and what the bombs unpack to at least.
LIMIT, BOMB = 32 * MIB, 64 * MIB
REASON = "unpacks to more than 32 MiB at a time; if that is meant, write it anew with fewer rows a group"


def convert_afresh(source: Source, tmp_path: Path) -> tuple[ConversionReport, list[str]]:
    """Convert in steps of 32 MiB; return the report and the ids of the documents."""
    context = multiprocessing.get_context("forkserver")  # see conftest.py
    with ProcessPoolExecutor(1, context) as executor:
        return executor.submit(_convert, source, tmp_path).result()


def _convert(source: Source, tmp_path: Path) -> tuple[ConversionReport, list[str]]:
    memory.MAX_STEP = LIMIT
    before = resource.getrlimit(resource.RLIMIT_AS)
    report, documents = run(source, tmp_path)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    return report, list(documents)


def zeros() -> pa.Array:
    """One value."""
    return pa.array([b"\0" * BOMB], pa.binary())


def one_row(items: pa.Array) -> pa.Array:
    """A list of them all."""
    return pa.ListArray.from_arrays(pa.array([0, len(items)], pa.int32()), items)


def repeated() -> pa.Array:
    """A value that stands once in the file, and a list that names it over and over."""
    places = pa.array(np.zeros(8 * BOMB // MIB, np.int32))
    return one_row(pa.DictionaryArray.from_arrays(places, pa.array(["x" * MIB])))


def nulls() -> pa.Array:
    return one_row(pa.nulls(BOMB // 4, pa.string()))


def save(path: Path, image: pa.Array, caption: pa.Array, codec: str = "zstd") -> Path:
    table = pa.table({"image": image, "caption": caption})
    if path.suffix == ".parquet":
        return save_parquet(path, table, codec)
    options = pa.ipc.IpcWriteOptions(compression=codec)
    opened = pa.ipc.new_stream if path.name.startswith("stream") else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, opened(file, table.schema, options=options) as writer:
        writer.write_table(table)
    return path


def save_parquet(path: Path, table: pa.Table, codec: str = "zstd") -> Path:
    # To look for a value of 64 MiB among others takes pyarrow seconds.
    lists = any(pa.types.is_list(kind) for kind in table.schema.types)
    pq.write_table(
        table, path, compression=codec, use_dictionary=lists, write_statistics=False, store_schema=False
    )
    return path


TEXT = pa.array(["A text."])
BOMBS = {
    "zstd.parquet": lambda path: save(path, zeros(), TEXT),
    "gzip.parquet": lambda path: save(path, zeros(), TEXT, "gzip"),
    "dictionary.parquet": lambda path: save(path, pa.array(["a.png"]), repeated()),
    "nulls.parquet": lambda path: save(path, pa.array(["a.png"]), nulls()),
    "stream.arrow": lambda path: save(path, zeros(), TEXT),
    "file.arrow": lambda path: save(path, zeros(), TEXT),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_in_a_table_is_counted_and_the_rest_converted(tmp_path, name):
    source = tmp_path / "source"
    source.mkdir()
    assert BOMBS[name](source / name).stat().st_size < 1 << 18
    save(source / "good.parquet", pa.array([picture()]), TEXT)
    report, documents = convert_afresh(Table(source), tmp_path)
    assert len(documents) == 1
    assert dict(report.broken) == {REASON: 1}
    assert [place.partition(":")[0] for place in report.named[REASON]] == [name]


def test_a_bomb_in_interleaved_documents_is_counted(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    table = pa.table({"images": one_row(pa.array([None], pa.string())), "texts": repeated()})
    save_parquet(source / "bad.parquet", table)
    good = {"images": [["a.png", None]], "texts": [[None, "A text."]]}
    pq.write_table(pa.table(good), source / "good.parquet")
    pictures = tmp_path / "images"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(picture())
    report, documents = convert_afresh(Obelics(source, images=pictures), tmp_path)
    assert (len(documents), dict(report.broken)) == (1, {REASON: 1})


def test_a_bomb_beside_a_tar_or_in_place_of_one_is_counted(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    save_parquet(source / "0.parquet", pa.table({"key": ["0"], "status": ["x" * BOMB]}))
    save_parquet(source / "1.parquet", pa.table({"jpg": zeros()}))
    report = pa.table({"key": ["2"], "status": ["success"], "caption": ["A text."], "jpg": [picture()]})
    pq.write_table(report, source / "2.parquet")
    found, documents = convert_afresh(Img2Dataset(source), tmp_path)
    assert (documents, found.broken[REASON]) == (["2/2"], 2)


def test_rows_of_nothing_are_not_counted_one_by_one(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    nothing = pa.nulls(1_000_000, pa.string())
    path = save(source / "bad.parquet", nothing, nothing)
    assert path.stat().st_size < 10_000
    save(source / "good.parquet", pa.array([picture()]), TEXT)
    report, _ = run(Table(source), tmp_path)
    assert dict(report.broken) == {"more rows than its bytes can hold": 1}
    assert report.read == 1
