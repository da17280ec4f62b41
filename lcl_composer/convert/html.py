"""A folder of web pages with local images -> Documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from lcl_composer.convert.assemble import Assembler
from lcl_composer.convert.encoding import decode_html
from lcl_composer.convert.files import batched, inside, walk
from lcl_composer.convert.images import read_file, read_image
from lcl_composer.convert.long_documents import Interleaved
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted, Part, Rejected
from lcl_composer.convert.text import display_name, speaks
from lcl_composer.convert.web_page import Heading, ImageReference, page_content, page_language
from lcl_composer.data.document import Document

_SUFFIXES = frozenset({".html", ".htm", ".xhtml"})
_PART_PAGES = 200


@dataclass(frozen=True, kw_only=True)
class HTML(Interleaved):
    """A folder of web pages and the images beside them.

    One document a page: text and images in reading order, images fixed in their places.

    Args:
        source: Folder with ``.html`` files, searched to any depth; no image outside it is read.
        min_side: Images with a shorter side, in pixels, are icons and are left out.
        min_words: Pages with fewer words are dropped.
        max_images: Images of a page beyond this many are left out; None for no limit.
        language: Languages to keep (``en``), by what pages say of themselves; may be given several times.
            A page that names none is kept.
    """

    min_side: int = 64
    min_words: int = 20
    max_images: int | None = None
    max_tokens: int = 2048
    language: list[str] | None = None

    kind: ClassVar[str] = "html"

    def parts(self) -> Iterator[Part]:
        """Yield pages by the hundred."""
        for pages in batched(walk(self.source, _SUFFIXES), _PART_PAGES):
            yield Part(pages[0], tuple(pages))

    def records(self, part: Part, report: ConversionReport) -> Iterator[tuple[str, str]]:
        """Yield the pages' paths below the source."""
        return ((display_name(page), page) for page in part.files)

    def samples(self, name: str, record: str, report: ConversionReport) -> Iterator[Converted]:
        """Yield the document of a page."""
        path = self.source / record
        html = decode_html(read_file(inside(self.source, record)), name, report)
        if self.language and (language := page_language(html)) and not speaks(language, self.language):
            raise Rejected("another language")
        assembler = Assembler(name, self.max_images, report)
        headings = []
        for part in page_content(html):
            if isinstance(part, ImageReference):
                assembler.image(part.src, lambda src=part.src: self._read(src, path))
            else:
                assembler.text(part)
                headings += [part] if isinstance(part, Heading) else []
        document = Document(name, f"{self.source.name}/{name}", tuple(assembler.segments))
        yield Converted(document, name, headings=tuple(headings))

    def _read(self, src: str, page: Path) -> bytes:
        """Return the image that an ``<img src>`` of a page names; a path from ``/`` starts at the source."""
        try:
            url = urlsplit(src)
        except ValueError as error:
            raise Rejected("src is no URL") from error
        if url.scheme == "data":
            raise Rejected("embedded in the page (data:)")
        if url.scheme or url.netloc:
            raise Rejected("not a local file")
        name = unquote(url.path)
        if not name or "\0" in name:
            raise Rejected("no src")
        base = self.source if name.startswith("/") else page.parent
        return read_image(inside(self.source, name.lstrip("/"), base), self.rules)
