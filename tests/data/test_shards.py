"""Samples of MDS shards."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import pytest

from lcl_composer.data import shards as module
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.shards import open_shards, read_documents, sample, spread
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.errors import DataError
from tests.inspect.conftest import RED


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many") / "set"
    with DocumentWriter(folder, size_limit=2000) as writer:
        for number in range(100):
            writer.write(Document(f"{number}", "here", (Text(f"text {number}"), RED)))
    assert len(json.loads((folder / "index.json").read_text())["shards"]) > 10
    return folder


def ids(folder, count):
    return [d.id for d in sample(open_shards(folder), count) if isinstance(d, Document)]


def test_all_documents_are_read_or_none(many, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_SHARDS", 3)  # of a sample
    assert [document.id for document in read_documents(many)] == [str(number) for number in range(100)]
    part = shutil.copytree(many, tmp_path / "part")
    next(part.glob("shard.00003.*")).unlink()
    with pytest.raises(DataError, match="part: 1 shards of its index are not here"):
        list(read_documents(part))


@pytest.mark.parametrize(("total", "count"), [(10, 3), (10, 10), (10, 50), (1, 1), (1000003, 997), (0, 5)])
def test_spread(total, count):
    places = spread(total, count)
    assert len(places) == min(total, count)
    assert sorted(set(places)) == places
    assert all(0 <= place < total for place in places)
    if len(places) > 2:
        gaps = [b - a for a, b in pairwise(places)]
        assert max(gaps) - min(gaps) <= 1


def test_samples_are_spread_and_the_same_each_time(many):
    assert ids(many, 1000) == [str(i) for i in range(100)]
    assert ids(many, 4) == ids(many, 4) == ["12", "37", "62", "87"]


def test_few_shards_are_read(many, monkeypatch):
    monkeypatch.setattr(module, "MAX_SHARDS", 3)
    read = []
    monkeypatch.setattr(
        module, "_load", lambda folder, shard, load=module._load: read.append(1) or load(folder, shard)
    )
    found = ids(many, 6)
    assert len(read) == 3
    assert int(found[0]) < 34 < int(found[-1])


def test_nothing_is_written(many):
    before = sorted(path.name for path in many.rglob("*"))
    ids(many, 10)
    assert sorted(path.name for path in many.rglob("*")) == before


def test_an_unpacked_shard_does_as_well(many, tmp_path):
    folder = shutil.copytree(many, tmp_path / "set")
    packed = sorted(folder.glob("*.zstd"))
    from streaming.base.compression import decompress

    packed[0].with_suffix("").write_bytes(decompress("zstd", packed[0].read_bytes()))
    packed[0].unlink()
    assert ids(folder, 1000) == [str(i) for i in range(100)]


def test_a_damaged_shard_is_named(many, tmp_path):
    folder = shutil.copytree(many, tmp_path / "set")
    first = min(folder.glob("*.zstd"))
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{first.name}: its xxh64 is not that of the index"):
        ids(folder, 1000)


def test_shards_that_are_elsewhere_are_counted(many, tmp_path):
    folder = shutil.copytree(many, tmp_path / "set")
    for path in sorted(folder.glob("*.zstd"))[1:]:
        path.unlink()
    found = open_shards(folder)
    assert found.missing == len(json.loads((folder / "index.json").read_text())["shards"]) - 1
    assert 0 < found.documents < 100
    min(folder.glob("*.zstd")).unlink()
    with pytest.raises(DataError, match=r"none of the .* shards"):
        open_shards(folder)


def test_a_record_that_does_not_add_up_is_yielded_as_its_error(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        record = {
            "id": "d",
            "source": "s",
            "segments": [{"image_bytes": 9, "floats": False}],
            "images": b"123",
        }
        patch.setattr(Document, "to_record", lambda self: record)
        with DocumentWriter(tmp_path / "set") as writer:
            writer.write(Document("d", "s", (Image(b"123"),)))
    (error,) = sample(open_shards(tmp_path / "set"), 5)
    assert isinstance(error, DataError)
    assert "3 image bytes, its segments name 9" in str(error)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "no data set"),
        ("{", "not an MDS index"),
        ('{"shards": [{"column_names": ["x"], "column_encodings": ["str"]}]}', "column 'id' is missing"),
        ('{"shards": []}', "holds no document"),
    ],
)
def test_other_folders_are_refused(tmp_path, index, message):
    if index is not None:
        (tmp_path / "index.json").write_text(index)
    with pytest.raises(DataError, match=message):
        open_shards(tmp_path)


def test_splits_are_suggested(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/index.json").write_text("{}")
    with pytest.raises(DataError, match=r"its splits have one: .*train"):
        open_shards(tmp_path)
