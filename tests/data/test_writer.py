from __future__ import annotations

import json
from pathlib import Path

import pytest

from lcl_composer.data.document import MDS_COLUMNS
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.errors import DataError
from tests.data.conftest import MakeDataset, example


def test_shards_are_compressed_hashed_and_of_safe_columns(make_dataset: MakeDataset):
    index = json.loads((make_dataset(8) / "index.json").read_text())
    assert len(index["shards"]) > 1
    for shard in index["shards"]:
        assert shard["compression"] == "zstd"
        assert set(shard["zip_data"]["hashes"]) == {"xxh64"}
        assert dict(zip(shard["column_names"], shard["column_encodings"], strict=True)) == MDS_COLUMNS


def test_folder_that_holds_files_is_refused(make_dataset: MakeDataset):
    folder = make_dataset(2)
    with pytest.raises(DataError, match="not empty"):
        DocumentWriter(folder)
    with DocumentWriter(folder, overwrite=True) as writer:
        writer.write(example(0))
    assert sum(s["samples"] for s in json.loads((folder / "index.json").read_text())["shards"]) == 1


def test_no_index_after_an_exception(tmp_path: Path):
    def write_and_stop() -> None:
        with DocumentWriter(tmp_path / "out") as writer:
            writer.write(example(0))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_and_stop()
    assert not (tmp_path / "out" / "index.json").exists()


def test_same_documents_give_the_same_bytes(make_dataset: MakeDataset):
    first, second = make_dataset(5, name="a"), make_dataset(5, name="b")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
