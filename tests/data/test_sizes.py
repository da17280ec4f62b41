from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lcl_composer.cli import app
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.sizes import SIZES_FILE, join_sizes, read_sizes, size_of, write_sizes
from lcl_composer.errors import DataError
from tests.data.conftest import MakeDataset


def test_bytes_of_text_and_images_are_counted():
    document = Document("a", "", (Text("é"), Image(b"12345"), Text("ab"), Image(b"", floats=True)))
    assert size_of(document) == (4, 2)


def test_a_data_set_has_its_documents_sizes_in_their_order(make_dataset: MakeDataset):
    folder = make_dataset(9)
    expected = [[len(f"{i + 1} 7") + 3 + 2 * (i % 2), 1 + i % 2] for i in range(9)]
    sizes = read_sizes(folder, 9)
    assert sizes is not None
    assert sizes.tolist() == expected


def test_the_command_writes_what_the_writer_does(make_dataset: MakeDataset):
    folder = make_dataset(9)
    written = (folder / SIZES_FILE).read_bytes()
    (folder / SIZES_FILE).unlink()
    result = CliRunner().invoke(app, ["sizes", str(folder)])
    assert result.output.splitlines()[-1] == f"{folder / SIZES_FILE}: 9 documents, 13 images"
    assert (folder / SIZES_FILE).read_bytes() == written
    shutil.rmtree(folder)
    assert CliRunner().invoke(app, ["sizes", str(folder)]).exit_code == 2


def test_parts_are_joined(make_dataset: MakeDataset, tmp_path: Path):
    parts = [make_dataset(3, name="a") / SIZES_FILE, make_dataset(2, name="b") / SIZES_FILE]
    join_sizes(tmp_path, parts)
    sizes = read_sizes(tmp_path, 5)
    assert sizes is not None
    assert sizes.tolist() == [row for part in parts for row in np.load(part).tolist()]


@pytest.mark.parametrize("spoil", ["of another version", "damaged", "a pickle"])
def test_a_file_that_does_not_fit_is_passed_over_and_said(
    make_dataset: MakeDataset, spoil: str, caplog: pytest.LogCaptureFixture
):
    folder = make_dataset(3)
    path = folder / SIZES_FILE
    if spoil == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    elif spoil == "a pickle":
        np.save(path, np.array([print, print]), allow_pickle=True)
    with caplog.at_level(logging.WARNING):
        assert read_sizes(folder, 4 if spoil == "of another version" else 3) is None
    assert "write it anew with 'lcl sizes'" in caplog.text
    path.unlink()
    assert read_sizes(folder, 3) is None


def test_neither_a_link_is_read_nor_written_through(make_dataset: MakeDataset, tmp_path: Path):
    folder, outside = make_dataset(3), tmp_path / "outside.npy"
    (folder / SIZES_FILE).rename(outside)
    (folder / SIZES_FILE).symlink_to(outside)
    with pytest.raises(DataError, match="a link that leads out of"):
        read_sizes(folder, 3)
    before = outside.read_bytes()
    write_sizes(folder, [(1, 1)] * 3)
    assert outside.read_bytes() == before
    assert not (folder / SIZES_FILE).is_symlink()
