"""img2dataset's tars -> Documents."""

from __future__ import annotations

import json
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


@needs_formats
def test_the_published_layout(tmp_path):
    report, documents = run(Img2Dataset(FORMATS / "laion400m"), tmp_path)
    assert sorted(documents) == ["00000/000000000", "00000/000000001", "00000/000000003"]
    assert shown(documents["00000/000000003"])[1] == "synthetic caption 3, café"
    assert dict(report.dropped) == {"not downloaded: failed_to_download": 1}
