"""A folder of images with captions in ``.txt`` files beside them -> Documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lcl_composer.convert.encoding import decode_text
from lcl_composer.convert.files import batched, inside
from lcl_composer.convert.images import SUFFIXES, read_file, read_image
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.sidecars import lone_sidecars, with_sidecars
from lcl_composer.convert.source import Converted, Part, Rejected, Source
from lcl_composer.convert.text import display_name, first_line
from lcl_composer.data.document import Document, Image, Text

_PART_IMAGES = 1000


@dataclass(frozen=True, kw_only=True)
class Captions(Source):
    """A folder of captioned images: ``name.png`` and ``name.txt``, whose first line with text is the caption.

    The text may be called ``name.png.txt`` too. One document a pair; the image floats, so it is drawn before
    or after its caption anew every epoch. Pairs of one caption are held out together, whatever its letters'
    case.

    Args:
        source: Folder with the pairs, searched to any depth.
        min_side: Images with a shorter side, in pixels, are dropped. Lower than for web pages: who wrote a
            caption for a thin pencil meant it, and it is no icon.
    """

    min_side: int = 16

    kind: ClassVar[str] = "captions"
    reads: ClassVar[frozenset[str]] = SUFFIXES | {".txt"}

    def parts(self) -> Iterator[Part]:
        """Yield images by the thousand, each followed by the name of its caption."""
        for pairs in batched(with_sidecars(self.source, (".txt",), self.links_into), _PART_IMAGES):
            yield Part(pairs[0][0], tuple(name for image, (text,) in pairs for name in (image, text)))

    def survey(self, report: ConversionReport) -> None:
        """Count what is of no kind that is read, and texts that are no picture's caption."""
        super().survey(report)
        for name in lone_sidecars(self.source, (".txt",), self.links_into):
            report.pass_over(".txt files without a picture of their name", display_name(name))

    def records(self, part: Part, report: ConversionReport) -> Iterator[tuple[str, tuple[str, str]]]:
        """Yield the paths of the images and their captions below the source."""
        pairs = zip(part.files[::2], part.files[1::2], strict=True)
        return ((display_name(image), (image, text)) for image, text in pairs)

    def samples(self, name: str, record: tuple[str, str], report: ConversionReport) -> Iterator[Converted]:
        """Yield the document of a pair."""
        file, text = record
        caption = self._read_caption(text, report)
        image = Image(read_image(self._file(file), self.rules), floats=True)
        document = Document(name, f"{self.called}/{name}", (image, Text(caption)))
        yield Converted(document, caption.casefold())

    def _file(self, name: str) -> Path:
        return inside(self.source, name, links_into=self.links_into)

    def _read_caption(self, name: str, report: ConversionReport) -> str:
        try:
            data = read_file(self._file(name))
        except Rejected as reason:
            raise Rejected(f"caption {reason}" if str(reason).startswith("file") else str(reason)) from reason
        return first_line(decode_text(data, display_name(name), report))
