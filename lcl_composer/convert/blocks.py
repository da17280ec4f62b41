"""Where a long document may be divided: units stay whole, blocks stay together, groups fit in the context."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from lcl_composer.data.document import Document, Image, Segment, Text

_PARAGRAPH = "\n\n"
#: The white space after a sentence, which some scripts do not set.
_SENTENCE_END = re.compile(r"""(?<=[.!?…])["')\]”’]*(\s+)|(?<=[。！？])(\s*)(?!\Z)""")
_SPACE = re.compile(r"(\s+)")
#: Share of the context that a repeated title and heading may take.
_MOST_CONTEXT = 0.25


@dataclass(frozen=True, slots=True)
class Unit:
    """An image, or a stretch of text that is not divided.

    Attributes:
        segment: What it is.
        tokens: Tokens it takes.
        glue: White space between it and the text before it in one segment; None where a segment begins.
        heading: It is a heading.
    """

    segment: Segment
    tokens: int
    glue: str | None = None
    heading: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """A text and the images that belong to it, which are not parted.

    Attributes:
        before: Images before the text: they float around it, or open the document.
        text: The text.
        after: Fixed images, up to the next text.
        tokens: Tokens it takes.
    """

    before: tuple[Unit, ...]
    text: Unit
    after: tuple[Unit, ...] = ()

    @property
    def units(self) -> tuple[Unit, ...]:
        """All of it in reading order."""
        return (*self.before, self.text, *self.after)

    @property
    def tokens(self) -> int:
        """Tokens it takes."""
        return sum(unit.tokens for unit in self.units)


@dataclass(frozen=True, slots=True)
class Divider:
    """Divides long documents.

    Attributes:
        room: Tokens of text and images that a document may have.
        image: Tokens of an image, its marks included.
        count: Returns the number of tokens of a text.
        repeat: Begin every group but the first with the title and the heading that it stands under.
    """

    room: int
    image: int
    count: Callable[[str], int]
    repeat: bool

    def divide(self, document: Document, headings: Sequence[str]) -> list[tuple[Segment, ...]]:
        """Return the segments of the documents that a document becomes.

        Args:
            document: A document with at least one text.
            headings: Those paragraphs of its texts that are headings, in reading order.
        """
        blocks = self._blocks(self._units(document, headings))
        title = section = replace(blocks[0].text, heading=True)
        groups, start = [], 0
        while start < len(blocks):
            context = self._context(title, section, blocks[start]) if start else ()
            end = _end(blocks, start, self.room - _tokens(context))
            groups.append(_segments([*context, *(unit for b in blocks[start:end] for unit in b.units)]))
            section = next((b.text for b in reversed(blocks[start:end]) if b.text.heading), section)
            start = end
        return groups

    def _context(self, title: Unit, section: Unit, first: Block) -> tuple[Unit, ...]:
        """Return what is repeated before a block: nothing if that would take up much of the context."""
        wanted = [title, section] if section.segment != title.segment else [title]
        if first.text.heading:
            wanted = [title]
        tokens = _tokens(wanted)
        fits = tokens <= _MOST_CONTEXT * self.room and tokens + first.tokens <= self.room
        return tuple(replace(u, glue=_PARAGRAPH) for u in wanted) if self.repeat and fits else ()

    def _units(self, document: Document, headings: Sequence[str]) -> Iterator[Unit]:
        """Yield images and paragraphs, and the sentences or words of a paragraph that is too long."""
        ahead = iter(headings)
        heading = next(ahead, None)
        for segment in document.segments:
            if isinstance(segment, Image):
                yield Unit(segment, self.image)
                continue
            glue = None
            for paragraph in filter(None, map(str.strip, segment.text.split(_PARAGRAPH))):
                is_heading = paragraph == heading
                if is_heading:
                    heading = next(ahead, None)
                for unit in self._stretches(paragraph, glue):
                    yield replace(unit, heading=is_heading)
                glue = _PARAGRAPH

    def _stretches(self, text: str, glue: str | None) -> Iterator[Unit]:
        """Yield a text in stretches that take no more than half of the room and leave some for an image."""
        tokens = self.count((glue or "") + text)
        if tokens <= min(self.room // 2, self.room - self.image) or len(text) < 2:
            yield Unit(Text(text), tokens, glue)
            return
        for inner, part in _sentences(text) or _halves(text):
            yield from self._stretches(part, glue if inner is None else inner)

    def _blocks(self, units: Iterator[Unit]) -> list[Block]:
        """Return units in blocks that fit.

        A fixed image belongs to the text before it, a floating one to the text behind it, and images that
        open a document to its first text.
        """
        blocks: list[Block] = []
        waiting: list[Unit] = []
        for unit in units:
            if isinstance(unit.segment, Text):
                blocks.append(Block(tuple(waiting), unit))
                waiting = []
            elif unit.segment.floats or not blocks:
                waiting.append(unit)
            else:
                blocks[-1] = replace(blocks[-1], after=(*blocks[-1].after, unit))
        blocks[-1] = replace(blocks[-1], after=(*blocks[-1].after, *waiting))
        return [part for block in blocks for part in self._fitting(block)]

    def _fitting(self, block: Block) -> Iterator[Block]:
        """Yield a block; if more images belong to its text than fit, the text with some of them at a time."""
        if block.tokens <= self.room:
            yield block
            return
        lot = max(1, (self.room - block.text.tokens) // self.image)
        for i in range(0, len(block.before), lot):
            yield Block(block.before[i : i + lot], block.text)
        for i in range(0, len(block.after), lot):
            yield Block((), block.text, block.after[i : i + lot])


def _end(blocks: Sequence[Block], start: int, room: int) -> int:
    """Return where the group that begins at ``start`` ends: the best place in the second half of the room."""
    used, best = 0, (-1, start)
    for at in range(start, len(blocks)):
        if at > start and 2 * used >= room:
            best = max(best, (_merit(blocks[at - 1], blocks[at]), at))
        used += blocks[at].tokens
        if at > start and used > room:
            return best[1] if best[0] >= 0 else at
    return len(blocks)


def _merit(before: Block, behind: Block) -> int:
    """Return how good it is to divide between two blocks."""
    if before.text.heading and not before.after:
        return 0  # a heading stays with what it is of
    if behind.text.heading:
        return 3
    # An image's legend often follows it, and a paragraph reads best as a whole.
    return 2 if not before.after and behind.text.glue in (None, _PARAGRAPH) else 1


def _segments(units: Sequence[Unit]) -> tuple[Segment, ...]:
    """Return units as segments, the texts joined that were one."""
    segments: list[Segment] = []
    for unit, before in zip(units, (None, *units), strict=False):
        last = segments[-1] if segments else None
        if isinstance(unit.segment, Text) and isinstance(last, Text) and unit.glue is not None:
            glue = _PARAGRAPH if before is not None and before.heading else unit.glue
            segments[-1] = Text(last.text + glue + unit.segment.text)
        else:
            segments.append(unit.segment)
    return tuple(segments)


def _tokens(units: Sequence[Unit]) -> int:
    return sum(unit.tokens for unit in units)


def _sentences(text: str) -> list[tuple[str | None, str]]:
    """Return the sentences of a text, each with the white space before it; nothing if it is only one."""
    parts: list[tuple[str | None, str]] = []
    glue, start = None, 0
    for match in _SENTENCE_END.finditer(text):
        space = match.lastindex or 0
        parts.append((glue, text[start : match.start(space)]))
        glue, start = match[space], match.end(space)
    return [*parts, (glue, text[start:])] if parts else []


def _halves(text: str) -> list[tuple[str | None, str]]:
    """Return a text in two, divided at the white space nearest to its middle, or just there."""
    middle = len(text) // 2
    spaces = (match.span() for match in _SPACE.finditer(text))
    start, end = min(spaces, key=lambda span: abs(span[0] - middle), default=(middle, middle))
    return [(None, text[:start]), (text[start:end], text[end:])]
