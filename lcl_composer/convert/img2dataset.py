"""What img2dataset writes (LAION-400M and others): images, captions and facts -> Documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from lcl_composer.convert.columnar import BROKEN as BROKEN_TABLE
from lcl_composer.convert.columnar import read_schema, why_broken
from lcl_composer.convert.encoding import decode_text, text_value
from lcl_composer.convert.files import batched, inside, parse_json, suffix_of, walk
from lcl_composer.convert.images import SUFFIXES, accept_image, read_file
from lcl_composer.convert.memory import bounded, check_rows
from lcl_composer.convert.pairs import PairSource, check_facts
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.sidecars import lone_sidecars, with_sidecars
from lcl_composer.convert.source import Converted, Part, Rejected
from lcl_composer.convert.tables import table_parts, table_rows
from lcl_composer.convert.tars import BROKEN, FACTS, Group, tar_groups
from lcl_composer.convert.text import caption_text, display_name

_TARS = frozenset({".tar", ".tar.gz", ".tgz"})
_TABLES = frozenset({".parquet"})
#: Columns of a table that may hold the images: one is called as they are encoded.
_IMAGES = sorted(suffix[1:] for suffix in SUFFIXES)
_COLUMNS = ["key", "status", "caption", "txt", "similarity", "LANGUAGE", *_IMAGES]
_PART_IMAGES = 1000


@dataclass(frozen=True, kw_only=True)
class Img2Dataset(PairSource):
    """An img2dataset folder (LAION) in its formats ``webdataset``, ``parquet`` or ``files``.

    One document a pair; the image floats, so it is drawn before or after its caption anew every epoch.
    Failed downloads, which stand only in the parquet, are counted. Pairs of one caption are held out
    together, whatever its letters' case.

    Args:
        source: Folder with ``00000.tar`` and ``00000.parquet``, with ``00000.parquet`` that holds the images,
            or with the folder ``00000`` of images, ``.txt`` and ``.json``; searched to any depth.
        min_similarity: Pairs whose ``similarity`` is lower, or absent, are dropped; None to keep all.
        language: Languages to keep (``en``), by the field ``LANGUAGE``; may be given several times. A pair
            that names none is kept.
    """

    kind: ClassVar[str] = "img2dataset"
    reads: ClassVar[frozenset[str]] = _TARS | _TABLES | SUFFIXES | {*FACTS}

    def _format(self) -> str:
        """Return the output format of the folder: img2dataset writes one only."""
        if next(walk(self.source, _TARS, self.links_into), None) is not None:
            return "webdataset"
        tables = walk(self.source, _TABLES, self.links_into)
        return "parquet" if any(_holds_images(self.source / name) for name in tables) else "files"

    def survey(self, report: ConversionReport) -> None:
        """Count what is of no kind that is read, and what does not belong to the folder's format."""
        super().survey(report)
        form = self._format()
        for name in self._strangers(form):
            if not name.endswith("_stats.json"):
                report.pass_over(f"{suffix_of(name)} files of no sample ({form})", display_name(name))

    def _strangers(self, form: str) -> Iterator[str]:
        if form == "files":
            yield from lone_sidecars(self.source, FACTS, self.links_into)
            return
        tables = _TABLES if form == "webdataset" else frozenset[str]()
        for name in walk(self.source, SUFFIXES | {*FACTS} | tables, self.links_into):
            tars = (self.source / f"{_stem(name)}{suffix}" for suffix in _TARS)
            if suffix_of(name) not in tables or not any(tar.exists() for tar in tars):
                yield name

    def parts(self) -> Iterator[Part]:
        """Yield the tars, stretches of the tables, or images by the thousand."""
        form = self._format()
        if form == "webdataset":
            for name in walk(self.source, _TARS, self.links_into):
                yield Part(name, (name, f"{_stem(name)}.parquet"))
            return
        for name in walk(self.source, _TABLES, self.links_into):
            yield from table_parts(self.source, name) if form == "parquet" else [Part(name, (name,))]
        if form == "files":
            for images in batched(with_sidecars(self.source, FACTS, self.links_into), _PART_IMAGES):
                files = [name for image, beside in images for name in (image, *beside)]
                yield Part(images[0][0], tuple(files))

    def records(self, part: Part, report: ConversionReport) -> Iterator[tuple[str, Any]]:
        """Yield failed downloads, and samples: groups of files, or rows of a table."""
        suffix = suffix_of(part.files[0])
        if suffix in _TARS:
            return self._of_tar(part, report)
        if suffix in _TABLES:
            return self._of_table(part, report) if part.items else self._failed(part.name, report)
        return self._of_files(part)

    def _of_tar(self, part: Part, report: ConversionReport) -> Iterator[tuple[str, Group | Rejected]]:
        if (self.source / part.files[1]).exists():
            yield from self._failed(part.files[1], report)
        try:
            for group in tar_groups(self.source / part.name, display_name(part.name), report):
                yield display_name(f"{_stem(part.name)}/{group.key}"), group
        except BROKEN as error:
            report.break_file(f"unreadable or cut off ({type(error).__name__})", part.name)

    def _failed(self, table: str, report: ConversionReport) -> Iterator[tuple[str, Rejected]]:
        """Yield the failed downloads of a table of facts."""
        try:
            path = inside(self.source, table, links_into=self.links_into)
            with pq.ParquetFile(path) as file:
                check_rows(file.metadata.num_rows, path)
                if "status" in file.schema_arrow.names:
                    yield from _failed_downloads(display_name(_stem(table)), file)
                else:
                    report.pass_over(".parquet files without a status", display_name(table))
        except Rejected as reason:
            report.break_file(str(reason), table)
        except BROKEN_TABLE as error:
            report.break_file(why_broken(error), table)

    def _of_table(self, part: Part, report: ConversionReport) -> Iterator[tuple[str, Any]]:
        stem = display_name(_stem(part.files[0]))
        for name, row in table_rows(self.source, part, _COLUMNS, report):
            key = row.get("key") if isinstance(row, dict) else None
            yield f"{stem}/{key}" if isinstance(key, str) else display_name(name), row

    def _of_files(self, part: Part) -> Iterator[tuple[str, Group | Rejected]]:
        each = 1 + len(FACTS)
        for image, *beside in batched(part.files, each):
            yield display_name(image), self._group(image, beside)

    def _group(self, image: str, beside: list[str]) -> Group | Rejected:
        group = Group(image)
        for suffix, name in zip((suffix_of(image), *FACTS), (image, *beside), strict=True):
            if name == image or (self.source / name).exists():
                try:
                    group.members[suffix] = read_file(inside(self.source, name, links_into=self.links_into))
                except Rejected as reason:
                    return reason
        return group

    def samples(
        self, name: str, record: Group | dict[str, Any], report: ConversionReport
    ) -> Iterator[Converted]:
        """Yield the document of a pair."""
        if isinstance(record, dict):
            image, facts, caption = _of_row(record)
        else:
            image, facts, caption = _of_group(record, name, report)
        caption = caption_text(text_value(caption, name, report))
        check_facts(self, facts.get("similarity"), facts.get("LANGUAGE"), report)
        yield self.pair(name, accept_image(image, self.rules), caption)


def _of_row(row: dict[str, Any]) -> tuple[bytes, dict[str, Any], Any]:
    """Return the image, the facts and the caption of a row.

    Raises:
        Rejected: If it was not downloaded, or holds no image.
    """
    if row.get("status", "success") != "success":
        raise _not_downloaded(row["status"])
    image = next((row[column] for column in _IMAGES if isinstance(row.get(column), bytes)), None)
    if image is None:
        raise Rejected("image missing")
    return image, row, row.get("caption") or row.get("txt")


def _of_group(group: Group, name: str, report: ConversionReport) -> tuple[bytes, dict[str, Any], Any]:
    """Return the image, the facts and the caption of a group of files.

    Raises:
        Rejected: If something is wrong with them.
    """
    if group.problem or (lack := group.lack()):
        raise Rejected(group.problem or lack)
    texts = {s: decode_text(group.members[s], name, report) for s in FACTS if s in group.members}
    facts = parse_json(texts[".json"]) if ".json" in texts else {}
    caption = texts[".txt"] if ".txt" in texts else facts.get("caption")
    return group.members[group.images[0]], facts, caption


def _stem(name: str) -> str:
    return name[: -len(suffix_of(name))]


def _holds_images(table: Path) -> bool:
    try:
        schema = read_schema(table)
    except BROKEN_TABLE:
        return False  # reading it will say what is wrong
    return any(name in schema.names and _is_bytes(schema.field(name).type) for name in _IMAGES)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _failed_downloads(stem: str, table: pq.ParquetFile) -> Iterator[tuple[str, Rejected]]:
    columns = [name for name in ("key", "status") if name in table.schema_arrow.names]
    batches = table.iter_batches(4096, columns=columns, use_threads=False)
    for rows in bounded(batch.to_pylist() for batch in batches):
        for row in rows:
            if row["status"] != "success":
                yield f"{stem}/{row.get('key')}", _not_downloaded(row["status"])


def _not_downloaded(status: Any) -> Rejected:
    return Rejected(f"not downloaded: {str(status)[:40]}")
