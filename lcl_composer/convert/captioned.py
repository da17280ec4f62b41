"""Evaluation sets of images with several captions each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lcl_composer.convert.images import SUFFIXES
from lcl_composer.convert.pictures import read_listed
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted, Part, Rejected, Source
from lcl_composer.convert.text import one_line
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.errors import DataError


@dataclass(frozen=True, kw_only=True)
class CaptionedSource(Source):
    """Images with captions. A document is the fixed image, then each caption as a text of its own.

    Args:
        images: Folder of the images; None for the usual place in the source.
    """

    images: Path | None = None

    #: Where the images lie below the source.
    image_folder: ClassVar[str] = ""
    reads: ClassVar[frozenset[str]] = SUFFIXES | {".json"}

    def check(self) -> None:
        """Look for the source and the image folder."""
        super().check()
        if not self._images.is_dir():
            raise DataError(f"{self._images}: no such folder; set images to where the image files are")

    @property
    def _images(self) -> Path:
        return self.images if self.images is not None else self.source / self.image_folder

    @abstractmethod
    def facts(self, record: Any) -> tuple[str, str, list[Any], str | None]:
        """Return id, path below the image folder, captions and split of a record.

        Raises:
            Rejected: If one is missing.
        """

    def records(self, part: Part, report: ConversionReport) -> Iterator[tuple[str, Any]]:
        """Yield a part's items."""
        for number, record in enumerate(part.items):
            yield f"{part.name}+{number}", record

    def samples(self, name: str, record: Any, report: ConversionReport) -> Iterator[Converted]:
        """Yield the document of an image."""
        identity, path, captions, split = self.facts(record)
        texts = [one_line(caption) for caption in captions if isinstance(caption, str)]
        segments = [Text(text) for text in texts if text]
        if not segments:
            raise Rejected("caption missing")
        image = Image(read_listed(path, self._images, self.rules))
        document = Document(identity, f"{self.called}/{path}", (image, *segments))
        yield Converted(document, identity, split)
