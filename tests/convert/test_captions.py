"""Images with caption files -> Documents."""

from __future__ import annotations

import os
import unicodedata

import pytest

from lcl_composer.convert.captions import Captions
from lcl_composer.convert.engine import convert as run
from lcl_composer.data.document import Image, Text
from lcl_composer.errors import DataError
from tests.convert.samples import picture, read_all, shown


def convert(source, tmp_path, **options):
    report = run(Captions(source, **options), str(tmp_path / "out"), progress=False)
    return report, read_all(tmp_path / "out")


def test_a_pair_is_a_floating_image_before_its_caption(tree, tmp_path):
    red = picture()
    source = tree(
        {"birds/robin.png": red, "birds/robin.txt": "  A red\t robin. \nde.utf8=Ein Rotkehlchen.\n"}
    )
    report, documents = convert(source, tmp_path)
    document = documents["birds/robin.png"]
    assert document.segments == (Image(red, floats=True), Text("A red robin."))
    assert document.source == "source/birds/robin.png"
    assert (report.read, report.documents, report.words.mean) == (1, 1, 3)


BAD = {
    "caption file missing": {"x.png": picture()},
    "caption empty": {"x.png": picture(), "x.txt": ""},
    "not a known image format": {"x.png": "<!DOCTYPE html><p>404", "x.txt": "A page."},
    "file empty": {"x.png": b"", "x.txt": "Nothing."},
    "vector graphics (SVG)": {"x.svg": "<svg/>", "x.txt": "A drawing."},
    "broken or cut off": {"x.png": picture(300)[:-40], "x.txt": "Half."},
    "a side under 16 px": {"x.png": picture(90, height=15), "x.txt": "A thread."},
}


@pytest.mark.parametrize(("reason", "files"), BAD.items())
def test_a_bad_pair_is_counted_and_named(tree, tmp_path, reason, files):
    source = tree({**files, "good.png": picture(), "good.txt": "Good."})
    report, documents = convert(source, tmp_path, verify=True)
    assert list(documents) == ["good.png"]
    assert dict(report.dropped) == {reason: 1}
    assert report.named[reason][0].startswith("x.")


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("\n \n\nAfter blank lines.\nsecond", "After blank lines."),
        ("Old Mac.\rsecond", "Old Mac."),
        ("One\u2028line,\x0bone\x85caption\r\nsecond", "One line, one caption"),
        ("\nde.utf8=Kein Englisch.\n", None),
    ],
)
def test_the_caption_is_the_first_line_with_text(tree, tmp_path, text, caption):
    source = tree({"x.png": picture(), "x.txt": text, "good.png": picture(), "good.txt": "Good."})
    report, documents = convert(source, tmp_path)
    if caption is None:
        assert dict(report.dropped) == {"caption empty": 1}
    else:
        assert shown(documents["x.png"])[1] == caption


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("a.jpg", "a.jpg.txt"),
        ("a.b.jpg", "a.b.txt"),
        ("a.jpg", "a.TXT"),
        ("a.jpg?w=640", "a.txt"),
        (unicodedata.normalize("NFD", "Übung.jpg"), unicodedata.normalize("NFC", "Übung.txt")),
        (unicodedata.normalize("NFC", "Übung.jpg"), unicodedata.normalize("NFD", "Übung.jpg.txt")),
    ],
)
def test_a_caption_has_its_pictures_name(tree, tmp_path, image, text):
    report, documents = convert(tree({f"Ü/{image}": picture(), f"Ü/{text}": "A caption."}), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == ["A caption."]
    assert not report.passed_over


def test_texts_that_are_no_caption_are_counted(tree, tmp_path):
    names = ("a.txt", "README.txt", "b.txt", "sub/a.txt", "a.jpg.txt")
    source = tree({"a.jpg": picture(), **dict.fromkeys(names, "A text.")})
    report, _ = convert(source, tmp_path)
    assert dict(report.passed_over) == {".txt files without a picture of their name": 4}
    assert report.examples.popitem()[1] == ["README.txt", "a.jpg.txt", "b.txt", "sub/a.txt"]


def test_captions_and_names_in_other_encodings(tree, tmp_path):
    source = tree({"x.png": picture(), "x.txt": "Un café.".encode("cp1252")})
    odd = os.fsdecode(os.fsencode(str(source)) + b"/caf\xe9")
    for suffix, data in ((".png", picture()), (".txt", b"\xef\xbb\xbfA name.")):
        with open(odd + suffix, "wb") as file:
            file.write(data)
    _, documents = convert(source, tmp_path)
    captions = {name: d.segments[1].text for name, d in documents.items() if isinstance(d.segments[1], Text)}
    assert captions == {"x.png": "Un café.", "caf\ufffd.png": "A name."}


def test_no_caption_of_training_is_held_out_even_in_other_letters(tree, tmp_path):
    files: dict[str, bytes | str] = {}
    for i in range(60):
        files |= {
            f"{i:02d}.png": picture(),
            f"{i:02d}.txt": ("A bird %d." if i % 2 else "a BIRD %d.") % (i // 3),
        }
    report = run(Captions(tree(files)), str(tmp_path / "out"), held_out=0.3, progress=False)
    splits = [
        {
            s.text.lower()
            for d in read_all(tmp_path / "out" / name).values()
            for s in d.segments
            if isinstance(s, Text)
        }
        for name in ("train", "held_out")
    ]
    assert not splits[0] & splits[1]
    assert len(splits[0]) + len(splits[1]) == 20
    assert report.kept["train"] + report.kept["held_out"] == 60
    assert report.kept["held_out"] % 3 == 0


def test_a_share_that_leaves_a_split_empty_is_refused(tree, tmp_path):
    source = tree({"x.png": picture(), "x.txt": "One."})
    with pytest.raises(DataError, match="no document falls to"):
        run(Captions(source), str(tmp_path / "out"), held_out=0.5, progress=False)


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        run(Captions(tmp_path / "nowhere"), str(tmp_path / "out"), progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found nothing to read"):
        run(Captions(tmp_path / "empty"), str(tmp_path / "out"), progress=False)
