"""MMC4's shards -> Documents and pairs."""

from __future__ import annotations

import json
import unicodedata
import zipfile
from pathlib import Path

import pytest

from lcl_composer.convert.mmc4 import MMC4, MMC4Pairs
from lcl_composer.data.document import Image, Text
from lcl_composer.errors import DataError
from tests.convert.samples import FORMATS, needs_formats, picture, run, shown


def info(name, sentence, similarity=0.3):
    return {"image_name": name, "matched_text_index": sentence, "matched_sim": similarity}


def page(sentences: list, images: list, **more) -> str:
    return json.dumps({"url": "http://a.b/c", "text_list": sentences, "image_info": images, **more})


def source(tmp_path: Path, shards: dict[str, list[str]], images: dict[str, bytes]) -> Path:
    for name, lines in shards.items():
        path = tmp_path / "mmc4" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(lines) + "\n"
        if name.endswith(".zip"):
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(Path(name).name[: -len(".zip")], text)
        else:
            path.write_text(text)
    for name, data in images.items():
        path = tmp_path / "mmc4/images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "mmc4"


RED, BLUE = picture(colour="red"), picture(colour="blue", kind="JPEG")


def test_images_float_at_their_sentences_and_the_others_are_joined(tmp_path):
    line = page(
        ["One.", "  Two\n2. ", "Three.", "Four.", None, "Five."], [info("b.jpg", 3), info("r.png", 0)]
    )
    folder = source(tmp_path, {"docs_shard_7_v2.jsonl": [line]}, {"r.png": RED, "7/b.jpg": BLUE})
    _, documents = run(MMC4(folder), tmp_path)
    document = documents["docs_shard_7_v2/1"]
    assert document.segments == (
        Image(RED, floats=True),
        Text("One."),
        Text("Two 2. Three."),
        Image(BLUE, floats=True),
        Text("Four."),
        Text("Five."),
    )
    assert document.source == "http://a.b/c"


@pytest.mark.parametrize(
    "name",
    [
        "docs_shard_{}_v2.jsonl.zip",
        "docs_shard_{}_v3.jsonl",
        "docs_no_face_shard_{}_v2.jsonl.zip",
        "docs_no_face_shard_{}_v3.jsonl.zip",
        "docs_no_face_shard_{}_v3.jsonl",
        "data/docs_shard_{}_v2.jsonl",
        "{}_v3.jsonl.zip",
        "no_face_{}_v2.jsonl",
    ],
)
def test_every_published_name_and_gaps_in_the_numbers(tmp_path, name):
    shards = {name.format(i): [page([f"In {i}."], [info("r.png", 0)])] for i in (12, 3, 100)}
    _, documents = run(MMC4(source(tmp_path, shards, {"r.png": RED})), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == ["In 3.", "In 12.", "In 100."]


def test_of_several_variants_one_must_be_chosen(tmp_path):
    line = [page(["A."], [info("r.png", 0)])]
    names = ["docs_shard_0_v2.jsonl.zip", "docs_no_face_shard_0_v3.jsonl.zip"]
    folder = source(tmp_path, dict.fromkeys(names, line), {"r.png": RED})
    with pytest.raises(DataError, match="variants core_fewer_faces, full of the same documents"):
        run(MMC4(folder), tmp_path)
    _, documents = run(MMC4(folder, variant="core_fewer_faces"), tmp_path)
    assert list(documents) == ["docs_no_face_shard_0_v3/1"]


def test_a_shard_unpacked_beside_its_zip_is_read_once(tmp_path):
    line = [page(["A."], [info("r.png", 0)])]
    names = ["docs_shard_0_v2.jsonl.zip", "docs_shard_0_v2.jsonl"]
    report, _ = run(MMC4(source(tmp_path, dict.fromkeys(names, line), {"r.png": RED})), tmp_path)
    assert report.documents == 1


def test_the_papers_filters(tmp_path):
    sentences = [f"S{i}." for i in range(9)]
    images = [info(f"{i}.png", i, 0.24 if i else 0.2399) for i in range(9)]
    folder = source(
        tmp_path, {"docs_shard_0_v2.jsonl": [page(sentences, images)]}, {f"{i}.png": RED for i in range(9)}
    )
    report, documents = run(MMC4(folder), tmp_path)
    assert [isinstance(s, Image) for s in documents["docs_shard_0_v2/1"].segments] == [
        *[False], *[True, False] * 6, *[False]
    ]  # fmt: skip
    assert dict(report.dropped_images) == {"similarity under 0.24, or none": 1, "over 6 images": 2}


def test_one_image_a_sentence_drawn_by_the_documents_id(tmp_path):
    rivals = {f"{i}.png": picture(64 + i) for i in range(3)}
    lines = [page(["S."], [info(name, 0) for name in rivals]) for _ in range(60)]
    folder = source(tmp_path, {"docs_shard_0_v2.jsonl": lines}, rivals)
    chosen = []
    for out in ("a", "b"):
        report, documents = run(MMC4(folder), tmp_path / out)
        assert report.dropped_images == {"another image has its sentence": 120}
        chosen.append([shown(document)[0] for document in documents.values()])
    assert chosen[0] == chosen[1]
    assert all(10 <= chosen[0].count(data) <= 32 for data in rivals.values())


def test_a_rival_takes_the_place_of_a_dead_link(tmp_path):
    lines = [page(["S."], [info("gone.png", 0), info("r.png", 0)]) for _ in range(8)]
    report, _ = run(MMC4(source(tmp_path, {"docs_shard_0_v2.jsonl": lines}, {"r.png": RED})), tmp_path)
    assert report.documents == 8
    reasons = report.dropped_images
    assert reasons["file missing"] + reasons["another image has its sentence"] == 8


GOOD = page(["Good."], [info("r.png", 0)])
BAD_LINES = {
    "not JSON, or cut off": GOOD[:40],
    "not a JSON object": "null",
    "text_list or image_info missing": page(["A."], None),
    "lists of unequal length": page(["A."], [info("r.png", 0)], similarity_matrix=[[0.3], [0.3]]),
    "no image": page(["A."], [info("gone.png", 0)]),
}


@pytest.mark.parametrize(("reason", "line"), BAD_LINES.items())
def test_a_bad_line_is_counted_and_named(tmp_path, reason, line):
    folder = source(tmp_path, {"docs_shard_0_v2.jsonl.zip": [GOOD, line, GOOD]}, {"r.png": RED})
    report, documents = run(MMC4(folder), tmp_path)
    assert list(documents) == ["docs_shard_0_v2/1", "docs_shard_0_v2/3"]
    assert dict(report.dropped) == {reason: 1}
    assert report.named[reason] == ["docs_shard_0_v2/2"]


BAD_IMAGES = {
    "image_name missing": {**info(None, 1)},
    "path climbs out of the folder": info("../secret.png", 1),
    "matched sentence missing": info("r.png", 9),
    "matched sentence empty": info("r.png", 2),
    "similarity under 0.24, or none": info("r.png", 1, None),
    "not a known image format": info("page.png", 1),
    "file missing": info("gone.png", 1),
    "file unreadable (File name too long)": info("x" * 5000, 1),
}


@pytest.mark.parametrize(("reason", "entry"), BAD_IMAGES.items())
def test_a_bad_image_is_left_out(tmp_path, reason, entry):
    line = page(["One.", "Two.", ""], [info("r.png", 0), entry])
    folder = source(
        tmp_path,
        {"docs_shard_0_v2.jsonl": [line]},
        {"r.png": RED, "page.png": b"<html>", "../secret.png": RED},
    )
    report, documents = run(MMC4(folder), tmp_path)
    assert shown(documents["docs_shard_0_v2/1"]) == [RED, "One.", "Two."]
    assert dict(report.dropped_images) == {reason: 1}


def test_truncated_zips_are_counted_and_the_other_shards_kept(tmp_path):
    folder = source(tmp_path, {f"docs_shard_{i}_v2.jsonl.zip": [GOOD] * 50 for i in range(3)}, {"r.png": RED})
    for number, damage in (
        (0, lambda data: data[: len(data) // 2]),
        (1, lambda data: data[:40] + b"???" + data[43:]),
    ):
        path = folder / f"docs_shard_{number}_v2.jsonl.zip"
        path.write_bytes(damage(path.read_bytes()))
    report, documents = run(MMC4(folder), tmp_path)
    assert sum(name.startswith("docs_shard_2_v2/") for name in documents) == 50
    assert report.broken.total() == 2


def test_pairs_take_the_best_sentence(tmp_path):
    line = page(
        ["One.", "Two.", "Three."],
        [info("r.png", 0, 0.25), info("b.jpg", 1, 0.3), info("r.png", 2, 0.2)],
        similarity_matrix=[[0.25, 0.26, 0.4], None, [0.1, 0.2, 0.2]],
    )
    folder = source(tmp_path, {"docs_shard_0_v2.jsonl": [line]}, {"r.png": RED, "b.jpg": BLUE})
    report, documents = run(MMC4Pairs(folder), tmp_path)
    assert documents["docs_shard_0_v2/1/0"].segments == (Image(RED, floats=True), Text("Three."))
    assert shown(documents["docs_shard_0_v2/1/1"]) == [BLUE, "Two."]
    assert len(documents) == 2
    assert dict(report.dropped_images) == {"similarity under 0.24, or none": 1}


@needs_formats
@pytest.mark.parametrize("variant", ["full", "fewer_faces", "core_fewer_faces"])
def test_the_published_layout(tmp_path, variant):
    report, documents = run(MMC4(FORMATS / "mmc4", variant=variant), tmp_path)
    assert (report.documents, report.images.total) == (10, 14)
    first = next(iter(documents.values()))
    assert shown(first)[1] == "Sentence 0 of document 0-0."
    pairs, _ = run(MMC4Pairs(FORMATS / "mmc4", variant=variant), tmp_path / "pairs")
    assert pairs.documents >= 14


@pytest.mark.parametrize("folders", [("0", "1"), ("5", "100"), ("0", None), (None, None)])
def test_folders_of_images_by_shard_or_position(tmp_path, folders):
    """allenai's download_images.py numbers the folders through, whatever the shards' numbers."""
    names = [f"docs_no_face_shard_{i}_v2.jsonl.zip" for i in (5, 100)]
    pictures = dict(zip(folders, (RED, BLUE), strict=True))
    folder = source(
        tmp_path,
        {name: [page(["S."], [info("r.png", 0)])] for name in names},
        {f"{sub}/r.png" if sub else "r.png": data for sub, data in pictures.items()},
    )
    _, documents = run(MMC4(folder), tmp_path)
    expected = {("0", "1"): [RED, BLUE], ("5", "100"): [RED, BLUE], ("0", None): [RED, BLUE]}
    assert [shown(d)[0] for d in documents.values()] == expected.get(folders, [BLUE, BLUE])


def test_what_macos_adds_to_a_zip_is_no_shard(tmp_path):
    folder = source(tmp_path, {}, {"r.png": RED})
    with zipfile.ZipFile(folder / "0_v3.jsonl.zip", "w") as archive:
        archive.writestr("__MACOSX/._0_v3.jsonl", "\0\5\x16\7")
        archive.writestr("0_v3.jsonl", page(["S."], [info("r.png", 0)]))
    report, documents = run(MMC4(folder), tmp_path)
    assert (list(documents), report.read) == (["0_v3/1"], 1)


def test_what_looks_like_a_shard_and_is_not_read_is_counted(tmp_path):
    names = [
        "docs_shard_0_v2.jsonl", "docs_shard_0_v2.jsonl.zip", "docs_shard_0_v3.jsonl",
        "a/b/docs_shard_1_v2.jsonl", "docs_shard_2_v2 (1).jsonl", "shard5.jsonl", "docs_shard_3_v2.zip",
    ]  # fmt: skip
    folder = source(tmp_path, {name: [page(["S."], [info("r.png", 0)])] for name in names}, {"r.png": RED})
    with zipfile.ZipFile(folder / "docs_shard_9_v2.jsonl.zip", "w") as archive:
        archive.writestr("9.jsonl", page(["S."], [info("r.png", 0)]))
        archive.writestr("10.jsonl", page(["S."], [info("r.png", 0)]))
    report, documents = run(MMC4(folder, variant="full"), tmp_path)
    assert list(documents) == ["docs_shard_0_v2/1", "docs_shard_9_v2/1"]
    assert dict(report.passed_over) == {
        "shards of another variant, read already, or in a folder further down": 3,
        ".jsonl files of another name than a shard's": 2,
        ".zip files of another name than a shard's": 1,
        "further .jsonl files in a shard's zip": 1,
    }


def test_image_names_as_other_systems_write_them(tmp_path):
    name = unicodedata.normalize("NFD", "café.png")
    folder = source(
        tmp_path,
        {"docs_shard_0_v2.jsonl": [page(["A.", "B."], [info("café.png", 0), info("sub\\b.jpg?x=1", 1)])]},
        {name: RED, "0/sub/b.jpg": BLUE},
    )
    _, documents = run(MMC4(folder), tmp_path)
    assert shown(documents["docs_shard_0_v2/1"]) == [RED, "A.", BLUE, "B."]


def test_long_documents_are_split_if_asked(tmp_path):
    sentences = [f"{'word ' * 60}{i}." for i in range(8)]
    line = page(sentences, [info("r.png", 1), info("b.jpg", 6)])
    folder = source(tmp_path, {"docs_shard_0_v2.jsonl": [line]}, {"r.png": RED, "b.jpg": BLUE})
    whole, _ = run(MMC4(folder), tmp_path / "whole")
    assert whole.documents == 1
    report, documents = run(MMC4(folder, max_tokens=256, tokens_per_image=49), tmp_path)
    assert next(iter(documents)) == "docs_shard_0_v2/1#0"
    assert report.images.total == 2
    for document in documents.values():
        for image, text in zip(document.segments, document.segments[1:], strict=False):
            if isinstance(image, Image):
                assert text == Text(sentences[1 if image.data == RED else 6])
