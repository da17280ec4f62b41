"""The content of a web page in reading order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lcl_composer.convert.furniture import Region, no_content
from lcl_composer.convert.page_images import ImageReference
from lcl_composer.convert.page_tokens import Edge, PageTokens
from lcl_composer.convert.text import one_line
from lcl_composer.convert.xhtml import is_xhtml, xhtml_to_html


@dataclass(frozen=True, slots=True)
class TextRun:
    """A piece of text, white space collapsed.

    Attributes:
        text: The text.
        joint: What stands between it and the text before it if no image does: a blank line where a block
            begins, else a space or nothing.
        heading: It is a heading.
    """

    text: str
    joint: str = "\n\n"
    heading: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """Words or an image of the page that are left out as no content."""

    reason: str
    words: int = 0
    image: ImageReference | None = None


class WebPage:
    """A web page.

    Args:
        text: The page, decoded.
        name: Its file name, whose suffix tells XHTML.

    Attributes:
        language: What it says it is in (``en-GB``), or an empty string.
        base: What its relative URLs start from, or an empty string.
    """

    def __init__(self, text: str, name: str) -> None:
        self._tokens = PageTokens(xhtml_to_html(text) if is_xhtml(text, name) else text)
        self.language = self._tokens.language
        self.base = self._tokens.base

    def content(self) -> Iterator[TextRun | ImageReference | Cut]:
        """Yield texts and images in reading order, and what is left out between them."""
        page = self._tokens
        regions = no_content(page.regions, page.page())
        text_cuts = _cuts(regions, len(page.row))
        image_cuts = _cuts([region for region in regions if not region.images_stay], len(page.row))
        run = _Run()
        for token, words, text_cut, image_cut in zip(
            page.row, page.words, text_cuts, image_cuts, strict=True
        ):
            if isinstance(token, str):
                if text_cut is None:
                    run.pieces.append(token)
                elif words:
                    yield Cut(text_cut, words)
                continue
            is_image = isinstance(token, ImageReference)
            if is_image and image_cut is not None:
                yield Cut(image_cut, image=token)
                continue
            if (text := run.end(token)) is not None:
                yield text
            if is_image:
                yield token
        if (text := run.end(Edge())) is not None:
            yield text


def _cuts(regions: list[Region], tokens: int) -> list[str | None]:
    """Return for each of a page's tokens the reason of the outermost region around it.

    Regions come in the order in which they begin and lie whole in one another or apart: what an earlier one
    covers is passed over, so that pages of thousands of nested ones take no longer.
    """
    reasons: list[str | None] = [None] * tokens
    covered = 0
    for region in regions:
        first, covered = max(covered, region.start), max(covered, region.end)
        reasons[first:covered] = [region.reason] * (covered - first)
    return reasons


class _Run:
    """Gathers pieces of text up to the next image or edge of a block."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._joint = "\n\n"
        self._heading = False

    def end(self, token: Edge | ImageReference) -> TextRun | None:
        """Return the text that ends where ``token`` stands, if there is any."""
        found, whole = None, "".join(self.pieces)
        self.pieces.clear()
        if text := one_line(whole):
            joint = " " if not self._joint and whole[0].isspace() else self._joint
            found = TextRun(text, joint, self._heading)
            self._joint = " " if whole[-1].isspace() else ""
        elif whole and not self._joint:
            self._joint = " "
        if isinstance(token, Edge):
            self._joint, self._heading = "\n\n", token.heading
        return found
