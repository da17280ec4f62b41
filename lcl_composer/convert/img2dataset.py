"""What img2dataset writes (LAION-400M and others): tars of images, captions and facts -> Documents."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from lcl_composer.convert.encoding import decode_text
from lcl_composer.convert.files import parse_json, walk
from lcl_composer.convert.images import MAX_BYTES, SUFFIXES, accept_image
from lcl_composer.convert.pairs import PairSource, check_facts
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted, Part, Rejected
from lcl_composer.convert.text import caption_text, display_name

#: Endings of a sample's members that are no images.
_FACTS = (".json", ".txt")


@dataclass
class _Group:
    """The members of one sample, by their suffix; ``problem`` if one of them cannot be used."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Img2Dataset(PairSource):
    """An img2dataset folder (LAION): ``00000.tar`` with images, captions and facts, and ``00000.parquet``.

    One document a pair; the image floats, so it is drawn before or after its caption anew every epoch.
    Failed downloads, which stand only in the parquet, are counted. Pairs of one caption are held out
    together, whatever its letters' case.

    Args:
        source: Folder with the tars, searched to any depth.
        min_similarity: Pairs whose ``similarity`` is lower, or absent, are dropped; None to keep all.
        language: Languages to keep (``en``), by the field ``LANGUAGE``; may be given several times. A pair
            that names none is kept.
    """

    kind: ClassVar[str] = "img2dataset"

    def parts(self) -> Iterator[Part]:
        """Yield the tars."""
        for tar in walk(self.source, frozenset({".tar"})):
            yield Part(tar, (tar, _table_name(tar)))

    def records(self, part: Part, report: ConversionReport) -> Iterator[tuple[str, _Group | Rejected]]:
        """Yield the failed downloads of the parquet, then the samples of the tar."""
        stem = part.name[: -len(".tar")]
        table = self.source / part.files[1]
        if table.exists():
            try:
                with pq.ParquetFile(table) as file:
                    yield from _failed_downloads(display_name(stem), file)
            except (OSError, pa.ArrowException) as error:
                report.break_file(f"unreadable or cut off ({type(error).__name__})", part.files[1])
        try:
            for group in _groups(self.source / part.name):
                yield display_name(f"{stem}/{group.key}"), group
        except (OSError, EOFError, tarfile.TarError, ValueError) as error:
            report.break_file(f"unreadable or cut off ({type(error).__name__})", part.name)

    def samples(self, name: str, record: _Group, report: ConversionReport) -> Iterator[Converted]:
        """Yield the document of a pair."""
        if record.problem:
            raise Rejected(record.problem)
        texts = {s: decode_text(record.members[s], name, report) for s in _FACTS if s in record.members}
        facts = parse_json(texts[".json"]) if ".json" in texts else {}
        images = [suffix for suffix in record.members if suffix not in _FACTS]
        if not images:
            raise Rejected("image missing")
        caption = caption_text(texts[".txt"] if ".txt" in texts else facts.get("caption"))
        check_facts(self, facts.get("similarity"), facts.get("LANGUAGE"), report)
        yield self.pair(name, accept_image(record.members[images[0]], self.rules), caption)


def _table_name(tar: str) -> str:
    return f"{tar[: -len('.tar')]}.parquet"


def _failed_downloads(stem: str, table: pq.ParquetFile) -> Iterator[tuple[str, Rejected]]:
    columns = [name for name in ("key", "status") if name in table.schema_arrow.names]
    if "status" not in columns:
        return
    for batch in table.iter_batches(4096, columns=columns, use_threads=False):
        for row in batch.to_pylist():
            if row["status"] != "success":
                yield f"{stem}/{row.get('key')}", Rejected(f"not downloaded: {str(row['status'])[:40]}")


def _groups(path: Path) -> Iterator[_Group]:
    """Yield the samples of a tar: members that follow each other and differ in suffix only.

    The last sample of a tar that breaks off is handed out as such before the error goes on.
    """
    group: _Group | None = None
    try:
        with tarfile.open(path, "r|", bufsize=1 << 20) as tar:
            for member in tar:
                key, suffix = _split(member.name)
                if suffix in (*_FACTS, *SUFFIXES):
                    if group is not None and group.key != key:
                        yield group
                        group = None
                    group = group or _Group(key)
                    _add(group, suffix, member, tar)
                # The tar would keep every header it has seen.
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
            _check_end(path, tar.offset)
    except (OSError, EOFError, tarfile.TarError, ValueError):
        if group is not None:
            group.problem = "cut off"
            yield group
        raise
    if group is not None:
        yield group


def _add(group: _Group, suffix: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    if problem := _problem(member):
        group.problem = problem
    elif (file := tar.extractfile(member)) is not None:
        group.members[suffix] = file.read()


def _check_end(path: Path, offset: int) -> None:
    """Check that zeros and nothing else follow; Python takes a bad header for the end of the tar."""
    with open(path, "rb") as file:
        file.seek(offset)
        rest = file.read(1 << 16)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise tarfile.ReadError("ends in the middle")


def _split(name: str) -> tuple[str, str]:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.name else name, path.suffix.lower()


def _problem(member: tarfile.TarInfo) -> str | None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return "path climbs out of the folder"
    if not member.isreg():
        return "no regular file in the tar"
    return f"file over {MAX_BYTES >> 20} MiB" if member.size > MAX_BYTES else None
