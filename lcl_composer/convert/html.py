"""A folder of web pages with local images -> Documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lcl_composer.convert.assemble import Assembler
from lcl_composer.convert.encoding import decode_html
from lcl_composer.convert.files import batched, inside, suffix_of, walk
from lcl_composer.convert.images import SUFFIXES, read_file
from lcl_composer.convert.long_documents import Interleaved
from lcl_composer.convert.page_images import ImageReference, is_stand_in
from lcl_composer.convert.pictures import is_blank, meant_files, read_picture
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted, Part, Rejected
from lcl_composer.convert.text import display_name, speaks
from lcl_composer.convert.web_page import Cut, WebPage
from lcl_composer.data.document import Document

_SUFFIXES = frozenset({".html", ".htm", ".xhtml", ".xht"})
_PART_PAGES = 200
#: A shorter ``data:`` URL beside the URL of a picture is a preview of it, a longer one the picture itself.
_LEAST_EMBEDDED = 1 << 12


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
    reads: ClassVar[frozenset[str]] = _SUFFIXES | SUFFIXES

    def survey(self, report: ConversionReport) -> None:
        """Count what is of no kind that is read, and images that no page shows."""
        super().survey(report)
        for name in walk(self.source, SUFFIXES, self.links_into):
            if name not in report.referred:
                report.pass_over(f"{suffix_of(name)} images that no page shows", display_name(name))

    def parts(self) -> Iterator[Part]:
        """Yield pages by the hundred."""
        for pages in batched(walk(self.source, _SUFFIXES, self.links_into), _PART_PAGES):
            yield Part(pages[0], tuple(pages))

    def records(self, part: Part, report: ConversionReport) -> Iterator[tuple[str, str]]:
        """Yield the pages' paths below the source."""
        return ((display_name(page), page) for page in part.files)

    def samples(self, name: str, record: str, report: ConversionReport) -> Iterator[Converted]:
        """Yield the document of a page."""
        path = self.source / record
        data = read_file(inside(self.source, record, links_into=self.links_into))
        page = WebPage(decode_html(data, name, report), name)
        if self.language and page.language and not speaks(page.language, self.language):
            raise Rejected("another language")
        assembler = Assembler(name, self.max_images, report)
        headings = []
        for part in page.content():
            image = part.image if isinstance(part, Cut) else part
            if isinstance(image, ImageReference):
                report.referred.names.update(self._files_of(image, path.parent, page.base))
            if isinstance(part, Cut):
                report.cut_words[part.reason] += part.words
                if part.image is not None:
                    report.cut_image(part.reason, f"{name}: {part.image.label[:200]}")
            elif isinstance(part, ImageReference):
                assembler.image(part.label, lambda image=part: self._read(image, path.parent, page.base))
            else:
                assembler.text(part.text, part.joint)
                headings += [part.text] if part.heading else []
        document = Document(name, f"{self.called}/{name}", tuple(assembler.segments))
        yield Converted(document, name, headings=tuple(headings))

    def _files_of(self, image: ImageReference, folder: Path, base: str) -> Iterator[str]:
        """Yield the files below the source that an image may mean."""
        for url in (*image.urls, *image.stand_ins):
            if not url.startswith("data:"):  # they are pictures, and would be remembered
                yield from meant_files(_absolute(url, base), self.source, folder)

    def _read(self, image: ImageReference, folder: Path, base: str) -> bytes:
        """Return the first picture that an image of a page in ``folder`` may mean.

        Raises:
            Rejected: If there is none; for the reason why the likeliest is none.
        """
        reasons: list[Rejected] = []
        for url in (*image.urls, *image.stand_ins):
            known = bool(image.urls) and url in image.stand_ins
            try:
                if known and (is_stand_in(url) or (url.startswith("data:") and len(url) < _LEAST_EMBEDDED)):
                    raise Rejected("only a placeholder")
                data = read_picture(_absolute(url, base), self.source, self.rules, [folder])
                doubtful = known or (image.lazy and url in image.stand_ins) or is_stand_in(url)
                if doubtful and is_blank(data):
                    raise Rejected("only a placeholder")
                return data
            except Rejected as reason:
                reasons.append(reason)
        raise reasons[0] if reasons else Rejected("no src")


def _absolute(url: str, base: str) -> str:
    """Return a URL seen from a page's ``<base>``; one on another host does not hold for saved pages."""
    if "//" in base or re.match(r"[a-z]+:|[/\\]", url, re.I):
        return url
    return base[: base.replace("\\", "/").rfind("/") + 1] + url
