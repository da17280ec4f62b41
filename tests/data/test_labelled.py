from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter

from lcl_composer.data.document import MDS_COLUMNS, Document, Image, Text
from lcl_composer.data.labelled import CLASSES_FILE, Labelled, check_same_classes, classes_of, count_classes
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.errors import DataError
from tests.data.conftest import MakeDataset, png


def labelled(number: int, name: str) -> Document:
    return Document(f"{name}-{number}", "test", (Image(png(number)), Text(name)))


def rows(*names: str) -> list[Document]:
    return [labelled(number, name) for number, name in enumerate(names)]


def test_the_layout_is_an_image_and_the_number_of_its_class() -> None:
    layout, rng = Labelled(("ant", "bee", "cat")), np.random.default_rng(0)
    laid = layout(labelled(0, "bee"), rng)
    assert (laid.targets.tolist(), laid.images.tolist(), laid.image_starts.tolist()) == ([1], [0], [-1])
    with pytest.raises(DataError, match=r"'dog-0': training has no class 'dog'"):
        layout(labelled(0, "dog"), rng)
    with pytest.raises(DataError, match="2 images and 1 texts, not one image and the name of its class"):
        layout(Document("d", "", (Image(b""), Text("ant"), Image(b""))), rng)


def test_classes_are_counted_once_and_anew_when_the_shards_change(make_dataset: MakeDataset) -> None:
    stray = Document("stray", "test", (Text("no image"), Text("two texts")))
    folder = make_dataset([*rows("bee", "ant", "bee", "été", "bee"), stray], size_limit=1 << 10)
    assert len(list(folder.glob("*.mds*"))) > 1
    assert count_classes(folder) == {"ant": 1, "bee": 3, "été": 1}
    kept = json.loads((folder / CLASSES_FILE).read_text())
    (folder / CLASSES_FILE).write_text(json.dumps({**kept, "classes": {"told": 1}}))
    assert count_classes(folder) == {"told": 1}
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "shards": index["shards"][:1]}))
    assert sum(count_classes(folder).values()) == index["shards"][0]["samples"]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A data set whose shard is not compressed: its images are not read."""
    with MDSWriter(out=str(tmp_path / "plain"), columns=MDS_COLUMNS) as writer:
        for row in rows("bee", "ant"):
            writer.write(row.to_record())
    return tmp_path / "plain"


def test_shards_without_compression_are_counted_too(plain: Path) -> None:
    assert count_classes(plain) == {"ant": 1, "bee": 1}


def test_damaged_shards_are_named(make_dataset: MakeDataset, plain: Path) -> None:
    for folder in (plain, make_dataset(rows("bee", "ant"))):
        shard = next(folder.glob("shard*"))
        shard.write_bytes(shard.read_bytes()[:40])
        with pytest.raises(DataError, match=f"{shard.name}: (damaged|its xxh64)"):
            count_classes(folder)


def test_both_sets_have_the_same_classes(make_dataset: MakeDataset) -> None:
    train = make_dataset(rows("bee", "ant", "cat"), "train")
    assert classes_of([train], [make_dataset(rows("cat", "ant", "bee"), "val")]) == ("ant", "bee", "cat")
    with pytest.raises(DataError, match=r"differ in the classes dog; give both the same classes"):
        classes_of([train], [make_dataset(rows("bee", "ant", "cat", "dog"), "more")])
    with pytest.raises(DataError, match=r"spelled calls a class 'Bee' that .*train calls 'bee'"):
        classes_of([train], [make_dataset(rows("Bee", "ant", "cat"), "spelled")])
    with pytest.raises(DataError, match="1 classes; classification needs two"):
        classes_of([make_dataset(rows("bee"), "one")])


def test_captions_are_no_classes(make_dataset: MakeDataset) -> None:
    """A sentence at each image: the message shows the beginning of one."""
    captions = [f"a photo of {n} bees that sit beside a small green house" for n in range(3)]
    with pytest.raises(
        DataError, match=r"its texts are captions \('a photo of 0 bees that sit beside a smal"
    ) as e:
        classes_of([make_dataset(rows(*captions), "captions")])
    assert "3 of 3 images; classify takes what lcl convert imagefolder makes" in str(e.value)
    assert len(str(e.value)) < 350
    assert classes_of([make_dataset(rows(*captions * 2), "classes")]) == tuple(sorted(captions))
    assert classes_of([make_dataset(rows("ant", "king penguin"), "few")]) == ("ant", "king penguin")
    with pytest.raises(
        DataError, match=r"differ in the classes a photo of 0 bees that sit beside a smal\.\.\., a"
    ):
        classes_of(
            [make_dataset(rows("ant", "bee"), "one")], [make_dataset(rows("ant", "bee", *captions), "b")]
        )


def test_an_image_and_a_half_has_no_class(make_dataset: MakeDataset) -> None:
    """One text, but no image or two: no labelled image."""
    twice = Document("twice", "test", (Image(png(0)), Text("cat"), Image(png(1))))
    none = Document("none", "test", (Text("cat"),))
    assert count_classes(make_dataset([*rows("bee"), twice, none])) == {"bee": 1}


def test_training_sets_spell_a_class_alike(make_dataset: MakeDataset) -> None:
    letters = [make_dataset(rows("a", "A", "C", "C++"), f"letters{n}") for n in range(2)]
    assert classes_of(letters) == ("A", "C", "C++", "a")
    one, other = make_dataset(rows("st. bernard", "C"), "one"), make_dataset(rows("St_Bernard", "C++"), "two")
    with pytest.raises(DataError, match=r"two calls a class 'St_Bernard' that .*one calls 'st. bernard'"):
        classes_of([one, other])


def test_many_other_classes_are_counted() -> None:
    with pytest.raises(DataError, match=r"a and b differ in the classes 0, 1, 2, 3, 4 and 3 more"):
        check_same_classes(("a", [str(i) for i in range(8)]), ("b", []))


def test_a_folder_that_cannot_be_written_to_is_counted_each_time(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_dataset(rows("bee", "ant"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert count_classes(folder) == {"ant": 1, "bee": 1}
    assert not (folder / CLASSES_FILE).exists()


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set"):
        count_classes(tmp_path)
    with DocumentWriter(tmp_path / "set") as writer:
        writer.write(labelled(0, "bee"))
    next((tmp_path / "set").glob("shard*")).unlink()
    with pytest.raises(DataError, match="none of the 1 shards"):
        count_classes(tmp_path / "set")
