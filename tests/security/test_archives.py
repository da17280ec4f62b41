"""An archive from a stranger: what is packed without end is not unpacked without end."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from lcl_composer.convert.files import MAX_LINE, parse_json
from lcl_composer.convert.images import Rejected
from lcl_composer.convert.img2dataset import Img2Dataset
from lcl_composer.convert.mmc4_shards import _shard_lines
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.tars import BROKEN, tar_groups
from tests.convert.samples import picture, run

KINDS = [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]


def header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("x")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_without_end_is_not_read_into_memory(tmp_path: Path, kind: bytes, packed: bool) -> None:
    """Of 64 MiB, in 64 kB of gzip; one member stands before it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in (("a.png", picture(8)), ("a.txt", b"A text.")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        end = tar.offset
    content = buffer.getvalue()[:end] + header(kind, 1 << 26)
    path = tmp_path / "x.tar"
    with gzip.open(path, "wb", 1) if packed else path.open("wb") as file:
        file.write(content)
        for _ in range(64):
            file.write(b"\0" * (1 << 20))
    tracemalloc.start()
    groups = tar_groups(path, "x.tar", ConversionReport("img2dataset", "x", {}))
    with pytest.raises(BROKEN, match="an extended header is too long"):
        list(groups)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_names_that_climb_out_of_a_tar_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with tarfile.open(source / "00000.tar", "w") as tar:
        for name in ("../out", "/tmp/out", "a/../../out", "good"):
            for suffix, content in ((".png", picture(64)), (".txt", b"A text.")):
                member = tarfile.TarInfo(name + suffix)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    report, documents = run(Img2Dataset(source), tmp_path)
    assert len(documents) == 1
    assert report.dropped["path climbs out of the folder"] == 3
    assert report.dropped["no regular file in the tar"] == 1
    assert list(tmp_path.rglob("out.*")) == []


def test_a_line_without_end_in_a_zip_is_passed_over(tmp_path: Path) -> None:
    name = "docs_shard_0_v2.jsonl"
    text = b" " * (MAX_LINE + (1 << 20)) + b"x\n" + b"[" * 100_000 + b"\n{}\n"
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    report = ConversionReport("mmc4", "x", {})
    with (tmp_path / "x.zip").open("rb") as packed:
        lines = [line for _, line in _shard_lines(packed, "x.zip", report)]
    read = [line for line in lines if isinstance(line, bytes)]
    assert max(map(len, read)) <= MAX_LINE
    assert read[-1] == b"{}\n"
    with pytest.raises(Rejected, match="not JSON"):
        parse_json(read[-2])
