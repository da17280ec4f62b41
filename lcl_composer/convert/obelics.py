"""OBELICS and OmniCorpus-CC: Parquet files of interleaved web documents -> Documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lcl_composer.convert.assemble import Assembler
from lcl_composer.convert.encoding import text_value
from lcl_composer.convert.files import walk
from lcl_composer.convert.long_documents import Interleaved
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted, Part, Rejected
from lcl_composer.convert.tables import COLUMNAR, check_columns, table_parts, table_rows
from lcl_composer.convert.text import display_name
from lcl_composer.convert.urls import image_of
from lcl_composer.data.document import Document
from lcl_composer.errors import DataError

#: Stands in OBELICS' texts where a page holds several articles.
_END_OF_DOCUMENT = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"


@dataclass(frozen=True, kw_only=True)
class Obelics(Interleaved):
    """OBELICS: Parquet files whose lists ``images`` and ``texts`` hold one of the two at each place.

    One document a row, images fixed in their places. A place that holds both or, as a failed download leaves
    it, neither is left out. Texts that become neighbours because the image between them is left out are
    joined with a blank line; so are articles of one page. The images are embedded, or were downloaded into
    one folder, each named by the SHA-256 of its URL.

    Args:
        source: Folder with the ``.parquet`` files, or the ``.arrow`` files of Hugging Face's ``datasets``,
            searched to any depth.
        images: Folder of the downloaded images.
        bytes_column: Column of lists of image bytes that run along with ``images``, if they are embedded so.
        max_images: Images of a document beyond this many are left out; None for no limit.
    """

    images: Path | None = None
    bytes_column: str | None = None
    max_images: int | None = None

    kind: ClassVar[str] = "obelics"
    reads: ClassVar[frozenset[str]] = COLUMNAR

    def check(self) -> None:
        """Look for the source and the image folder."""
        super().check()
        if self.images is not None and not self.images.is_dir():
            raise DataError(f"{self.images}: no such folder; set images to where the downloads are")

    @property
    def _columns(self) -> list[str]:
        return ["images", "texts", *([self.bytes_column] if self.bytes_column else [])]

    def parts(self) -> Iterator[Part]:
        """Yield groups of rows of the files."""
        for name in walk(self.source, COLUMNAR, self.links_into):
            check_columns(self.source / name, self._columns)
            yield from table_parts(self.source, name)

    def records(self, part: Part, report: ConversionReport) -> Iterator[tuple[str, Any]]:
        """Yield the rows."""
        for name, row in table_rows(self.source, part, self._columns, report):
            yield display_name(name), row

    def samples(self, name: str, record: dict[str, Any], report: ConversionReport) -> Iterator[Converted]:
        """Yield the document of a row."""
        images, texts = _lists(record["images"], record["texts"])
        embedded = record[self.bytes_column] if self.bytes_column else images
        if not isinstance(embedded, list) or len(embedded) != len(images):
            raise Rejected("lists of unequal length")
        document = Assembler(name, self.max_images, report)
        for place, (text, image, data) in enumerate(zip(texts, images, embedded, strict=True)):
            if _is_absent(image) == _is_absent(text):
                what = "neither image nor text" if _is_absent(image) else "image and text"
                report.drop_image(f"{what} at a place", f"{name}: place {place}")
            elif not _is_absent(image):
                label = image if isinstance(image, str) else f"image at {place}"
                document.image(label, lambda data=data: image_of(data, self.images, self.rules))
            elif not isinstance(text := text_value(text, name, report), str):
                report.drop_image("text is no text", f"{name}: place {place}")
            elif text := _clean(text):
                document.text(text)
        yield Converted(Document(name, f"{self.called}/{name}", tuple(document.segments)), name)


@dataclass(frozen=True, kw_only=True)
class OmniCorpus(Obelics):
    """OmniCorpus-CC: Parquet files as OBELICS' in a folder a dump; images embedded or downloaded.

    Args:
        source: Folder with the dumps, searched to any depth.
    """

    kind: ClassVar[str] = "omnicorpus"


def _lists(images: Any, texts: Any) -> tuple[list[Any], list[Any]]:
    if not isinstance(images, list) or not isinstance(texts, list):
        raise Rejected("images or texts missing")
    if len(images) != len(texts):
        raise Rejected("lists of unequal length")
    return images, texts


def _is_absent(value: Any) -> bool:
    """Say whether nothing stands at a place: null, NaN, an empty text or image, as scripts leave them."""
    if isinstance(value, dict):
        return all(_is_absent(value.get(key)) for key in ("bytes", "path"))
    return value is None or value != value or (isinstance(value, str | bytes) and not value.strip())


def _clean(text: str) -> str:
    return "\n\n".join(piece.strip() for piece in text.split(_END_OF_DOCUMENT) if piece.strip())
