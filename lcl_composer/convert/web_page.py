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
    """Words or an image of the page that are left out as no content; ``image`` names it."""

    reason: str
    words: int = 0
    image: str | None = None


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
        run = _Run()
        for token, words, cut in self._judged():
            if cut is not None and isinstance(token, ImageReference):
                yield Cut(cut, image=token.label)
            elif cut is not None and words:
                yield Cut(cut, words)
            elif isinstance(token, str):
                if cut is None:
                    run.pieces.append(token)
            else:
                yield from run.end(token)
                if isinstance(token, ImageReference):
                    yield token
        yield from run.end(Edge())

    def _judged(self) -> Iterator[tuple[str | ImageReference | Edge, int, str | None]]:
        """Yield each token, the words in it, and why it is left out, if it is."""
        page = self._tokens
        waiting = iter(no_content(page.regions, page.page()))
        following = next(waiting, None)
        around: list[Region] = []
        for index, (token, words) in enumerate(zip(page.row, page.words, strict=True)):
            while around and around[-1].end <= index:
                around.pop()
            while following is not None and following.start <= index:
                if following.end > index:
                    around.append(following)
                following = next(waiting, None)
            is_image = isinstance(token, ImageReference)
            yield token, words, next((r.reason for r in around if not (is_image and r.images_stay)), None)


class _Run:
    """Gathers pieces of text up to the next image or edge of a block."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._joint = "\n\n"
        self._heading = False

    def end(self, token: Edge | ImageReference) -> Iterator[TextRun]:
        """Yield the text that ends where ``token`` stands, if there is any."""
        whole = "".join(self.pieces)
        self.pieces.clear()
        if text := one_line(whole):
            joint = " " if not self._joint and whole[0].isspace() else self._joint
            yield TextRun(text, joint, self._heading)
            self._joint = " " if whole[-1].isspace() else ""
        elif whole and not self._joint:
            self._joint = " "
        if isinstance(token, Edge):
            self._joint, self._heading = "\n\n", token.heading
