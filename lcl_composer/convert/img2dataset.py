"""What img2dataset writes (LAION-400M and others): tars of images, captions and facts -> Documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from lcl_composer.convert.encoding import decode_text
from lcl_composer.convert.files import parse_json, walk
from lcl_composer.convert.images import accept_image
from lcl_composer.convert.pairs import PairSource, check_facts
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted, Part, Rejected
from lcl_composer.convert.tars import BROKEN, FACTS, Group, tar_groups
from lcl_composer.convert.text import caption_text, display_name

_TARS = (".tar", ".tar.gz", ".tgz")


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
    reads: ClassVar[frozenset[str]] = frozenset({".tar", ".tgz", ".gz", ".parquet", ".json"})
    hint: ClassVar[str] = (
        "img2dataset's output format files is read by captions, parquet by table --image-column jpg"
    )

    def parts(self) -> Iterator[Part]:
        """Yield the tars."""
        for name in walk(self.source, frozenset({".tar", ".tgz", ".gz"}), self.links_into):
            if name.lower().endswith(_TARS):
                yield Part(name, (name, f"{_stem(name)}.parquet"))

    def records(self, part: Part, report: ConversionReport) -> Iterator[tuple[str, Group | Rejected]]:
        """Yield the failed downloads of the parquet, then the samples of the tar."""
        stem = _stem(part.name)
        table = self.source / part.files[1]
        if table.exists():
            try:
                with pq.ParquetFile(table) as file:
                    yield from _failed_downloads(display_name(stem), file)
            except (OSError, pa.ArrowException) as error:
                report.break_file(f"unreadable or cut off ({type(error).__name__})", part.files[1])
        try:
            for group in tar_groups(self.source / part.name, display_name(part.name), report):
                yield display_name(f"{stem}/{group.key}"), group
        except BROKEN as error:
            report.break_file(f"unreadable or cut off ({type(error).__name__})", part.name)

    def samples(self, name: str, record: Group, report: ConversionReport) -> Iterator[Converted]:
        """Yield the document of a pair."""
        if record.problem:
            raise Rejected(record.problem)
        texts = {s: decode_text(record.members[s], name, report) for s in FACTS if s in record.members}
        facts = parse_json(texts[".json"]) if ".json" in texts else {}
        caption = caption_text(texts[".txt"] if ".txt" in texts else facts.get("caption"))
        check_facts(self, facts.get("similarity"), facts.get("LANGUAGE"), report)
        yield self.pair(name, accept_image(record.members[record.images[0]], self.rules), caption)


def _stem(tar: str) -> str:
    return tar[: -len(next(ending for ending in _TARS if tar.lower().endswith(ending)))]


def _failed_downloads(stem: str, table: pq.ParquetFile) -> Iterator[tuple[str, Rejected]]:
    columns = [name for name in ("key", "status") if name in table.schema_arrow.names]
    if "status" not in columns:
        return
    for batch in table.iter_batches(4096, columns=columns, use_threads=False):
        for row in batch.to_pylist():
            if row["status"] != "success":
                yield f"{stem}/{row.get('key')}", Rejected(f"not downloaded: {str(row['status'])[:40]}")
