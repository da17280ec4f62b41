"""img2dataset's tars -> Documents."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcl_composer.convert.img2dataset import Img2Dataset
from lcl_composer.data.document import Image, Text
from tests.convert.samples import FORMATS, bomb, needs_formats, picture, run, shown
from tests.convert.tars import pair, write_tar


def test_pairs_float_and_keep_their_bytes_in_all_formats(tmp_path):
    png, webp = picture(), picture(kind="WEBP")
    write_tar(tmp_path / "laion/00000.tar", {**pair("0", png, "png"), **pair("1", webp, "webp")})
    write_tar(tmp_path / "laion/00002.tar", pair("0", picture(kind="JPEG")))
    report, documents = run(Img2Dataset(tmp_path / "laion"), tmp_path)
    assert list(documents) == ["00000/0", "00000/1", "00002/0"]
    assert documents["00000/0"].segments == (Image(png, floats=True), Text("caption 0"))
    assert documents["00000/1"].source == "laion/00000/1"
    assert documents["00000/1"].images[0].data == webp
    assert report.read == 3


def test_failed_downloads_stand_in_the_parquet_only(tmp_path):
    write_tar(tmp_path / "laion/00000.tar", pair("0"))
    rows = {"key": ["0", "1", "2"], "status": ["success", "failed_to_download", None], "caption": ["a"] * 3}
    pq.write_table(pa.table(rows), tmp_path / "laion/00000.parquet")
    report, _ = run(Img2Dataset(tmp_path / "laion"), tmp_path)
    assert dict(report.dropped) == {"not downloaded: failed_to_download": 1, "not downloaded: None": 1}
    assert report.named["not downloaded: failed_to_download"] == ["00000/1"]


BAD = {
    "caption missing": {"x.jpg": picture(), "x.json": '{"caption": null}'},
    "caption empty": {"x.jpg": picture(), "x.txt": " \n"},
    "image missing": {"x.txt": "nothing to see"},
    "not JSON, or cut off": {**pair("x"), "x.json": '{"caption": "half'},
    "not a JSON object": {**pair("x"), "x.json": "[1]"},
    "not a known image format": pair("x", b"<!DOCTYPE html>"),
    "more than 89,478,485 pixels": pair("x", bomb()),
    "broken or cut off": pair("x", picture(300, kind="JPEG")[:-300]),
    "file empty": pair("x", b""),
    "path climbs out of the folder": pair("../x"),
    "a side under 16 px": pair("x", picture(15)),
    "similarity under 0.28, or none": pair("x", similarity=None),
    "another language": pair("x", LANGUAGE="de-AT"),
}


@pytest.mark.parametrize(("reason", "members"), BAD.items())
def test_a_bad_pair_is_counted_and_named(tmp_path, reason, members):
    write_tar(tmp_path / "laion/0.tar", {**pair("a"), **members, **pair("z", LANGUAGE=None)})
    source = Img2Dataset(
        tmp_path / "laion", min_side=16, verify=True, min_similarity=0.28, language=["en", "fr"]
    )
    report, documents = run(source, tmp_path)
    assert list(documents) == ["0/a", "0/z"]
    assert dict(report.dropped) == {reason: 1}
    assert report.named[reason][0].endswith("x")
    named = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert named == [{"reason": reason, "sample": report.named[reason][0]}]


def test_a_link_in_a_tar_is_not_followed(tmp_path):
    write_tar(tmp_path / "laion/0.tar", pair("a"))
    with tarfile.open(tmp_path / "laion/0.tar", "a") as tar:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    report, documents = run(Img2Dataset(tmp_path / "laion"), tmp_path)
    assert list(documents) == ["0/a"]
    assert dict(report.dropped) == {"no regular file in the tar": 1}


def write_members(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    """Write a tar whose members may share a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            data = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path.parent


RED, GREEN = picture(colour="red", kind="JPEG"), picture(colour="green", kind="JPEG")


@pytest.mark.parametrize(
    ("members", "kept", "dropped"),
    [
        (  # two samples of one name run into each other
            [("0.jpg", RED), ("0.txt", "red"), ("0.jpg", GREEN), ("0.json", "{}")],
            [],
            {"several images or texts of one name in the tar": 1},
        ),
        (
            [("0.jpg", RED), ("0.png", GREEN), ("0.txt", "red")],
            [],
            {"several images or texts of one name in the tar": 1},
        ),
        (
            [
                ("0.jpg", RED),
                ("0.txt", "red"),
                ("1.jpg", RED),
                ("1.txt", "one"),
                ("0.jpg", GREEN),
                ("0.txt", "g"),
            ],
            ["red", "one"],
            {"another sample of its name in the tar": 1},
        ),
        (  # images first, then texts
            [("0.jpg", RED), ("1.jpg", GREEN), ("2.jpg", RED), ("0.txt", "red"), ("1.txt", "green")],
            [],
            {"its members stand apart: the tar is not sorted": 2, "caption missing": 1},
        ),
        (
            [("0.jpg", RED), ("0.txt", "red"), ("1.txt", "one"), ("2.heic", b"x"), ("2.txt", "two")],
            ["red"],
            {"image missing": 1, "image of a format not read (.heic)": 1},
        ),
    ],
)
def test_no_picture_gets_the_caption_of_another(tmp_path, members, kept, dropped):
    folder = write_members(tmp_path / "laion/0.tar", [*members, ("z.jpg", RED), ("z.txt", "last")])
    report, documents = run(Img2Dataset(folder), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == [*kept, "last"]
    assert all(shown(d)[0] == RED for d in documents.values())
    assert dict(report.dropped) == dropped


def test_what_macos_adds_splits_no_sample(tmp_path):
    members: list[tuple[str, bytes | str]] = []
    for key in ("000", "001"):
        for name, content in ((f"{key}.jpg", RED), (f"{key}.json", "{}"), (f"{key}.txt", f"caption {key}")):
            members += [
                (f"./._{name}", b"\0\x05\x16\x07"),
                (f"__MACOSX/{name}", b"x"),
                (f"./{name}", content),
            ]
    report, documents = run(Img2Dataset(write_members(tmp_path / "laion/0.tar", members)), tmp_path)
    assert [shown(d)[1] for d in documents.values()] == ["caption 000", "caption 001"]
    assert report.read == 2


def test_members_that_are_not_read_are_counted(tmp_path):
    folder = write_members(
        tmp_path / "laion/0.tar", [("0.jpg", RED), ("0.npy", b"x"), ("0.txt", "red"), ("README", "r")]
    )
    report, documents = run(Img2Dataset(folder), tmp_path)
    assert list(documents) == ["0/0"]
    assert dict(report.passed_over) == {".npy in a tar": 1, "no suffix in a tar": 1}
    assert report.examples[".npy in a tar"] == ["0.tar: 0.npy"]


@pytest.mark.parametrize("name", ["0.tar.gz", "0.TGZ", "0.tar"])
def test_compressed_tars_are_read_and_broken_ones_counted(tmp_path, name):
    noisy = RED + random.Random(0).randbytes(30_000)  # that a part of it does not inflate to the whole
    members: dict[str, bytes | str] = {}
    for i in range(9):
        members |= {f"{i}.jpg": noisy, f"{i}.txt": str(i)}
    write_tar(tmp_path / "laion/x", members)
    whole = gzip.compress((tmp_path / "laion/x").read_bytes())
    (tmp_path / "laion" / name).write_bytes(whole)
    report, documents = run(Img2Dataset(tmp_path / "laion"), tmp_path)
    assert (list(documents), report.broken.total()) == ([f"0/{i}" for i in range(9)], 0)
    (tmp_path / "laion" / name).write_bytes(whole[: len(whole) // 2])
    report, documents = run(Img2Dataset(tmp_path / "laion"), tmp_path / "cut")
    assert 0 < len(documents) < 9
    assert report.broken.total() == 1


@pytest.mark.parametrize("cut", [10_240, 7_000, 6_144, 5_632, 3_900, 100])
def test_of_a_truncated_tar_the_whole_samples_are_kept(tmp_path, cut):
    write_tar(tmp_path / "laion/0.tar", {k: v for i in range(6) for k, v in pair(str(i), picture(8)).items()})
    write_tar(tmp_path / "laion/1.tar", pair("z"))
    whole = (tmp_path / "laion/0.tar").read_bytes()
    (tmp_path / "laion/0.tar").write_bytes(whole[:cut])
    report, documents = run(Img2Dataset(tmp_path / "laion"), tmp_path)
    size = 6 * 512  # a header and a block for each of three members
    last = max(0, -(-cut // size) - 1)
    assert sorted(documents) == [*(f"0/{i}" for i in range(min(last, 6))), "1/z"]
    assert report.named["unreadable or cut off (ReadError)"] == ["0.tar"]


def test_a_damaged_header_is_no_end(tmp_path):
    write_tar(tmp_path / "laion/0.tar", {k: v for i in range(4) for k, v in pair(str(i), picture(8)).items()})
    data = bytearray((tmp_path / "laion/0.tar").read_bytes())
    data[6 * 512 + 148 : 6 * 512 + 156] = b"garbage!"
    (tmp_path / "laion/0.tar").write_bytes(data)
    report, _ = run(Img2Dataset(write_good(tmp_path)), tmp_path)
    assert report.broken.total() == 1


def write_good(tmp_path: Path) -> Path:
    write_tar(tmp_path / "laion/9.tar", pair("good"))
    return tmp_path / "laion"


def test_a_parquet_that_is_none_is_counted_and_the_tar_read(tmp_path):
    (write_good(tmp_path) / "9.parquet").write_bytes(b"PAR1 no")
    report, documents = run(Img2Dataset(tmp_path / "laion"), tmp_path)
    assert list(documents) == ["9/good"]
    assert report.named["unreadable or cut off (ArrowInvalid)"] == ["9.parquet"]


FACTS = {"caption": "a red boat", "similarity": 0.31, "LANGUAGE": "en", "key": "000000000"}
STATUS = {"key": ["000000000", "000000001"], "status": ["success", "failed_to_download"]}


def test_the_format_files(tree, tmp_path):
    folder = tree(
        {
            "00000/000000000.jpg": RED,
            "00000/000000000.txt": "a red boat",
            "00000/000000000.json": json.dumps(FACTS),
            "00000/000000002.jpg": GREEN,
            "00000/000000002.json": json.dumps({**FACTS, "caption": "green", "similarity": None}),
            "00000/000000003.jpg": GREEN,
            "00000/000000004.txt": "a lost picture",
            "00000_stats.json": "{}",
        }
    )
    pq.write_table(pa.table(STATUS), folder / "00000.parquet")
    pq.write_table(pa.table({"url": ["u"]}), folder / "part-0.parquet")
    report, documents = run(Img2Dataset(folder), tmp_path)
    assert {name: shown(d) for name, d in documents.items()} == {
        "00000/000000000.jpg": [RED, "a red boat"],
        "00000/000000002.jpg": [GREEN, "green"],
    }
    assert dict(report.dropped) == {"not downloaded: failed_to_download": 1, "caption missing": 1}
    assert dict(report.passed_over) == {
        ".txt files of no sample (files)": 1,
        ".parquet files without a status": 1,
    }
    report, documents = run(Img2Dataset(folder, min_similarity=0.3), tmp_path / "similar")
    assert list(documents) == ["00000/000000000.jpg"]


@pytest.mark.parametrize("column", ["jpg", "png", "webp"])
def test_the_format_parquet(tmp_path, column):
    rows = {
        "key": ["0", "1", "2", "3"],
        "status": ["success", "failed_to_download", "success", "success"],
        "caption": ["a red boat", None, None, "green"],
        "similarity": [0.31, None, 0.4, 0.2],
        column: pa.array([RED, None, RED, None], pa.binary()),
    }
    (tmp_path / "laion").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "laion/00000.parquet")
    (tmp_path / "laion/00001.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "laion/stray.jpg").write_bytes(RED)
    report, documents = run(Img2Dataset(tmp_path / "laion"), tmp_path)
    assert {name: shown(d) for name, d in documents.items()} == {"00000/0": [RED, "a red boat"]}
    assert dict(report.dropped) == {
        "not downloaded: failed_to_download": 1,
        "caption missing": 1,
        "image missing": 1,
    }
    assert report.broken.total() == 1
    assert dict(report.passed_over) == {".jpg files of no sample (parquet)": 1}


def test_samples_unpacked_beside_their_tars_are_read_once(tmp_path):
    write_tar(tmp_path / "laion/00000.tar", pair("0"))
    (tmp_path / "laion/00000").mkdir()
    (tmp_path / "laion/00000/0.jpg").write_bytes(RED)
    pq.write_table(pa.table(STATUS), tmp_path / "laion/00007.parquet")
    report, documents = run(Img2Dataset(tmp_path / "laion"), tmp_path)
    assert list(documents) == ["00000/0"]
    assert dict(report.passed_over) == {
        ".jpg files of no sample (webdataset)": 1,
        ".parquet files of no sample (webdataset)": 1,
    }


@needs_formats
def test_the_published_layout(tmp_path):
    report, documents = run(Img2Dataset(FORMATS / "laion400m"), tmp_path)
    assert sorted(documents) == ["00000/000000000", "00000/000000001", "00000/000000003"]
    assert shown(documents["00000/000000003"])[1] == "synthetic caption 3, café"
    assert dict(report.dropped) == {"not downloaded: failed_to_download": 1}
