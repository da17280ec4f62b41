"""COCO, Flickr30k, NoCaps and ImageFolders -> Documents for evaluation."""

from __future__ import annotations

import json
import unicodedata

import pytest

from lcl_composer.convert.engine import convert
from lcl_composer.convert.imagefolder import ImageFolder
from lcl_composer.convert.karpathy import Coco, Flickr30k
from lcl_composer.convert.nocaps import NoCaps
from lcl_composer.data.document import Image, Text
from lcl_composer.data.labelled import count_classes
from lcl_composer.errors import ConfigError, DataError
from tests.convert.samples import FORMATS, needs_formats, picture, read_all, run

RED = picture()


def entry(number: int, split: str, captions: list | None, name: str | None = "r.png", **more) -> dict:
    sentences = None if captions is None else [{"raw": caption} for caption in captions]
    return {"filename": name, "imgid": number, "split": split, "sentences": sentences, **more}


def test_an_image_is_followed_by_its_captions_in_the_splits_of_the_file(tree, tmp_path):
    images = [
        entry(0, "train", ["One.", " Two\n2."], cocoid=70, filepath="train2014"),
        entry(1, "test", ["Three.", None, ""], cocoid=71, filepath="train2014"),
    ]
    source = tree({"dataset_coco.json": json.dumps({"images": images}), "train2014/r.png": RED})
    report, _ = run(Coco(source), tmp_path)
    assert dict(report.kept) == {"train": 1, "test": 1}
    (document,) = read_all(tmp_path / "out/train").values()
    assert document.segments == (Image(RED), Text("One."), Text("Two 2."))
    assert (document.id, document.source) == ("train/70", "source/train2014/r.png")
    (document,) = read_all(tmp_path / "out/test").values()
    assert document.segments == (Image(RED), Text("Three."))


BAD = {
    "caption missing": entry(1, "val", None),
    "file missing": entry(1, "val", ["A."], "gone.png"),
    "path climbs out of the folder": entry(1, "val", ["A."], "../secret.png"),
    "imgid or filename missing": entry(1, "val", ["A."], None),
    "split missing": entry(1, "../val", ["A."]),
}


@pytest.mark.parametrize(("reason", "bad"), BAD.items())
def test_a_bad_entry_is_counted_and_named(tree, tmp_path, reason, bad):
    images = json.dumps({"images": [entry(0, "val", ["A."]), bad]})
    source = tree({"dataset_flickr30k.json": images, "flickr30k-images/r.png": RED, "../secret.png": RED})
    report, documents = run(Flickr30k(source), tmp_path)
    assert list(documents) == ["val/0"]
    assert dict(report.dropped) == {reason: 1}
    assert report.named[reason] == ["dataset_flickr30k.json:0+1"]


def test_image_names_as_other_systems_write_them(tree, tmp_path):
    images = [{"id": 1, "file_name": "café.png"}, {"id": 2, "file_name": "sub\\r.png?download=1"}]
    annotations = [{"image_id": i, "caption": "A."} for i in (1, 2)]
    facts = json.dumps({"images": images, "annotations": annotations})
    name = unicodedata.normalize("NFD", "café.png")
    source = tree({"nocaps_val.json": facts, f"val/{name}": RED, "val/sub/r.png": RED})
    assert sorted(run(NoCaps(source), tmp_path)[1]) == ["1", "2"]


def test_annotation_files_that_are_none_are_refused(tree, tmp_path):
    source = tree({"dataset_coco.json": '{"images": [{"spl'})
    with pytest.raises(DataError, match="cut off"):
        run(Coco(source), tmp_path)
    (source / "dataset_coco.json").write_text("{}")
    with pytest.raises(DataError, match="no list 'images'"):
        run(Coco(source), tmp_path)
    with pytest.raises(ConfigError, match="splits of their own"):
        run(Coco(source), tmp_path, held_out=0.5)


def test_nocaps_ids_begin_with_the_domain(tree, tmp_path):
    images = [{"id": 5, "file_name": "r.png", "domain": "near-domain"}, {"id": 6, "file_name": "r.png"}]
    images += [{"id": 7, "file_name": "r.png"}, None]
    annotations = [{"image_id": i, "caption": f"Caption {i}{c}."} for c in "ab" for i in (5, 6)] + [
        {"image_id": []}
    ]
    facts = json.dumps({"images": images, "annotations": annotations})
    source = tree({"nocaps_val.json": facts, "val/r.png": RED})
    report, documents = run(NoCaps(source), tmp_path)
    assert documents["near-domain/5"].segments == (Image(RED), Text("Caption 5a."), Text("Caption 5b."))
    assert sorted(documents) == ["6", "near-domain/5"]
    assert dict(report.dropped) == {"caption missing": 1, "id or file_name missing": 1}
    (source / "nocaps_test.json").write_text(facts)
    with pytest.raises(DataError, match=r"found nocaps_test.json, nocaps_val.json; name it with annotations"):
        run(NoCaps(source), tmp_path / "two")
    assert run(NoCaps(source, annotations="nocaps_test.json"), tmp_path / "two")[0].documents == 2


def test_what_is_no_class_or_split_is_counted(tree, tmp_path):
    names = (
        "train/cat/1.png",
        "train/bird/1.ppm",
        "train/fish/1.jfif",
        "validation/cat/1.png",
        "extra/cat/1.png",
    )
    files: dict[str, bytes | str] = dict.fromkeys(names, RED)
    litter = ("train/.ipynb_checkpoints/1.png", "train/cat/.ipynb_checkpoints/1.png", "train/cat/._1.png")
    files |= dict.fromkeys((*litter, "train/Thumbs.db", "train/dog/1.heic"), b"x")
    source = tree(files)
    (source / "train/link").symlink_to(source / "extra")
    report, documents = run(ImageFolder(source), tmp_path)
    assert list(documents) == [
        "train/bird/1.ppm",
        "train/cat/1.png",
        "train/fish/1.jfif",
        "validation/cat/1.png",
    ]
    assert dict(report.kept) == {"train": 3, "val": 1}
    assert dict(report.passed_over) == {
        "hidden folders": 2,
        "AppleDouble files": 1,
        ".db files": 1,
        ".heic files": 1,
        "links to folders (see --links-into)": 1,
        "images outside of train, validation": 1,
    }


@pytest.mark.parametrize(
    ("names", "kept", "classes"),
    [
        (("Training/cat/1.png", "Testing/cat/2.png"), {"train": 1, "test": 1}, ["cat", "cat"]),
        (("train/cat/1.png", "dev/cat/2.png"), {"train": 1, "val": 1}, ["cat", "cat"]),
        (("train/cat/1.png", "test/2.png"), {"train": 1}, ["cat"]),  # of a contest, without labels
        (("cat/1.png", "test/2.png"), {"": 2}, ["cat", "test"]),
        (("test/cat/1.png",), {"test": 1}, ["cat"]),
    ],
)
def test_which_folders_are_splits(tree, tmp_path, names, kept, classes):
    report, documents = run(ImageFolder(tree(dict.fromkeys(names, RED))), tmp_path)
    assert {split if split != "all" else "": count for split, count in report.kept.items()} == kept
    assert sorted(document.segments[1].text for document in documents.values()) == classes


def test_splits_without_classes_are_no_classes(tree, tmp_path):
    with pytest.raises(DataError, match="not in a class folder"):
        run(ImageFolder(tree(dict.fromkeys(("train/1.png", "val/2.png"), RED))), tmp_path)


def test_classes_without_a_word_are_classes(tree, tmp_path):
    names = ["+", "=", "😀", "a"]
    report, _ = run(ImageFolder(tree({f"train/{name}/1.png": RED for name in names})), tmp_path)
    assert report.documents == 4


def test_classes_are_the_same_however_their_accents_are_written(tree, tmp_path):
    names = [f"{s}/{unicodedata.normalize(f, 'café')}/1.png" for s, f in (("train", "NFC"), ("val", "NFD"))]
    _, documents = run(ImageFolder(tree(dict.fromkeys(names, RED))), tmp_path)
    assert len({document.segments[1] for document in documents.values()}) == 1
    assert len(documents) == 2


def test_an_imagefolders_class_is_its_text(tree, tmp_path):
    files = {"train/cat/a.JPEG": picture(kind="JPEG"), "train/dog/x/b.png": RED, "val/cat/c.png": RED}
    files |= {"val/dog/broken.png": b"<html>", "train/stray.png": RED, "train/cat/notes.txt": b"no image"}
    report, documents = run(ImageFolder(tree(files)), tmp_path)
    assert {name: d.segments[1] for name, d in documents.items()} == {
        "train/cat/a.JPEG": Text("cat"),
        "train/dog/x/b.png": Text("dog"),
        "val/cat/c.png": Text("cat"),
    }
    assert dict(report.kept) == {"train": 2, "val": 1}
    assert report.named == {
        "not a known image format": ["val/dog/broken.png"],
        "not in a class folder": ["train/stray.png"],
    }


@pytest.mark.parametrize("remote", [False, True])
def test_the_classes_of_an_imagefolder_lie_beside_each_index(tree, tmp_path, monkeypatch, remote):
    source = tree({f"{name}.png": RED for name in ("train/cat/a", "train/été/b", "train/cat/c", "val/cat/d")})
    work = {"work": tmp_path / "work"} if remote else {}
    convert(ImageFolder(source), str(tmp_path / "out"), workers=1, progress=False, **work)
    kept = (tmp_path / "out/train/classes.json").read_bytes()
    monkeypatch.setattr("lcl_composer.data.labelled.open_shards", lambda folder: pytest.fail("counted again"))
    assert count_classes(tmp_path / "out/train") == {"cat": 2, "été": 1}
    assert count_classes(tmp_path / "out/val") == {"cat": 1}
    monkeypatch.undo()
    (tmp_path / "out/train/classes.json").unlink()
    count_classes(tmp_path / "out/train")
    assert (tmp_path / "out/train/classes.json").read_bytes() == kept


def test_only_labelled_images_have_classes(tree, tmp_path):
    source = tree(
        {"dataset_coco.json": json.dumps({"images": [entry(0, "train", ["One."], cocoid=1)]}), "r.png": RED}
    )
    run(Coco(source), tmp_path)
    assert not list((tmp_path / "out").rglob("classes.json"))


def test_class_folders_without_splits(tree, tmp_path):
    _, documents = run(ImageFolder(tree({"cat/a.png": RED, "dog/b.png": RED})), tmp_path)
    assert {name: d.segments[1] for name, d in documents.items()} == {
        "cat/a.png": Text("cat"),
        "dog/b.png": Text("dog"),
    }
    assert (tmp_path / "out/index.json").is_file()


@needs_formats
def test_the_published_layouts(tmp_path):
    kept = {}
    for source in (
        Coco(FORMATS / "coco"),
        Flickr30k(FORMATS / "flickr30k"),
        NoCaps(FORMATS / "nocaps"),
        ImageFolder(FORMATS / "imagenet"),
    ):
        report, documents = run(source, tmp_path / source.kind)
        kept[source.kind] = dict(report.kept)
        assert not report.dropped
        assert all(isinstance(d.segments[0], Image) and len(d.images) == 1 for d in documents.values())
    assert kept == {
        "coco": {"train": 1, "restval": 1, "val": 1, "test": 2},
        "flickr30k": {"train": 2, "val": 1, "test": 2},
        "nocaps": {"all": 3},
        "imagefolder": {"train": 4, "val": 4},
    }
