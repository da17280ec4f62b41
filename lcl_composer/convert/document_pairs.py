"""Converted documents -> the pairs of the same documents, so that methods on pairs see the same images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lcl_composer.convert.images import Rejected, accept_image
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted, Part, Source
from lcl_composer.convert.text import one_line
from lcl_composer.data.document import Document, Image, Segment, Text
from lcl_composer.data.shards import open_shards, read_shard, shard_file
from lcl_composer.errors import DataError
from lcl_composer.links import leads_out, refuse_links


@dataclass(frozen=True, kw_only=True)
class DocumentPairs(Source):
    """The images of converted documents, each with its text: what a method on pairs learns from them.

    A floating image is paired with the sentence it belongs to. A fixed one is paired with the paragraph
    before it and the one after it, whatever images lie between: on some pages the caption is the one, on
    others the other, and nothing tells which. So a paragraph between two images serves both. The image
    floats around its text; pairs are called after the document, ``NAME#0``, ``NAME#1``, by the image's place.

    Args:
        source: Folder that lcl convert wrote; its splits are kept.
    """

    kind: ClassVar[str] = "pairs"
    has_splits: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = frozenset({
        ".json", ".jsonl", ".mds", ".br", ".bz2", ".mds.gz", ".snappy", ".zstd",
    })  # fmt: skip

    def _splits(self) -> list[str]:
        """The sub-folders with an index; none of them is the folder itself."""
        splits = sorted(path.parent.name for path in self.source.glob("*/index.json"))
        return splits if not (self.source / "index.json").is_file() else ["", *splits]

    def parts(self) -> Iterator[Part]:
        """Yield the shards, split after split.

        Raises:
            DataError: If there is no data set of Documents, or shards of it are elsewhere.
        """
        for split in self._splits() or [""]:
            shards = open_shards(self.source / split)
            shards.check_whole()
            for shard in shards.present:
                path = shard_file(shards.folder, shard)
                if self.links_into is None or leads_out(path, self.links_into):
                    refuse_links(self.source, [path])
                file = path.relative_to(self.source).as_posix()
                yield Part(file, (file,), [split, shard])

    def records(self, part: Part, report: ConversionReport) -> Iterator[tuple[str, tuple[str, Document]]]:
        """Yield a shard's documents, each with its split.

        Raises:
            DataError: If the shard is damaged, or the record of a document does not add up.
        """
        split, shard = part.items
        for document in read_shard(Path(self.source, split), shard):
            if isinstance(document, DataError):
                raise document
            yield document.id, (split, document)

    def samples(
        self, name: str, record: tuple[str, Document], report: ConversionReport
    ) -> Iterator[Converted]:
        """Yield the pairs of a document."""
        split, document = record
        if not document.images:
            raise Rejected("no image")
        places = [place for place, segment in enumerate(document.segments) if isinstance(segment, Image)]
        for number, place in enumerate(places):
            pair = f"{name}#{number}"
            try:
                image, text = _pair(document.segments, place)
                data = accept_image(image.data, self.rules)
            except Rejected as reason:
                report.drop_image(str(reason), pair)
                continue
            made = Document(pair, document.source, (Image(data, floats=True), Text(text)))
            yield Converted(made, name, split or "all")


def _pair(segments: Sequence[Segment], place: int) -> tuple[Image, str]:
    """Return the image at a place and its text, on one line.

    Raises:
        Rejected: If it has none.
    """
    image = segments[place]
    assert isinstance(image, Image)
    before = next((s.text for s in reversed(segments[:place]) if isinstance(s, Text)), "")
    after = next((s.text for s in segments[place:] if isinstance(s, Text)), "")
    texts = [after] if image.floats else [*_paragraphs(before)[-1:], *_paragraphs(after)[:1]]
    if not (text := one_line(" ".join(texts))):
        raise Rejected("no text")
    return image, text


def _paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, which a blank line parts."""
    return [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
