"""Image folders for a probe, from converted captions."""

from __future__ import annotations

from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.writer import DocumentWriter
from scripts.class_folders import MIN_IMAGES, SPLITS, read_classes, write_classes
from tests.data.conftest import png


def pairs(counts: dict[str, int], first: int) -> list[Document]:
    names = [name for name, count in counts.items() for _ in range(count)]
    return [
        Document(f"{name}/small/{i}.png", "test", (Image(png(first + i)), Text(name)))
        for i, name in enumerate(names)
    ]


def write(folder: Path, documents: list[Document]) -> None:
    with DocumentWriter(folder) as writer:
        for document in documents:
            writer.write(document)


def test_classes_with_images_enough_are_written_split_by_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train = {"town": MIN_IMAGES, "food": MIN_IMAGES + 1, "people": 3, "space": 12}
    write(tmp_path / "train", pairs(train, 0))
    write(tmp_path / "held_out", pairs({"town": 2, "food": 1, "people": 4}, 500))
    sets = {split: read_classes(tmp_path / split, "*") for split in SPLITS}
    assert write_classes(sets, tmp_path / "classes") == ["food", "town"]
    train, val = (ImageFolder(str(tmp_path / "classes" / split)) for split in ("train", "val"))
    assert train.classes == val.classes == ["food", "town"]
    assert (len(train), len(val)) == (2 * MIN_IMAGES + 1, 3)
    assert Path(val.samples[0][0]).read_bytes() == png(502)
    assert "2 classes; too small: people, space" in capsys.readouterr().out


def test_ids_may_be_chosen(tmp_path: Path):
    write(tmp_path, pairs({"town": 2, "food": 1}, 0))
    chosen = [document.id for _, document in read_classes(tmp_path, "town/*1.png")]
    assert chosen == ["town/small/1.png"]
