"""A document as the model will see it: stretches of text and images, and what each token is used for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lcl_composer.data.batch import IGNORE
from lcl_composer.data.document import Document
from lcl_composer.data.image import OPEN_CLIP, Augmentation
from lcl_composer.data.interleave import LayoutRules, TokenLayout, lay_out
from lcl_composer.data.rng import sample_rng
from lcl_composer.data.tokenizer import Tokenizer, structural_ids

#: What a stretch of text is used for. Every text token that is not cut is predicted (L_gen); before an
#: anchored image it is also the context that L_con compares with the image.
TextUse = Literal["context", "target", "ignored"]
ImageState = Literal["pair", "unanchored", "unused", "cut"]

#: More tokens than any document has.
_NO_LIMIT = 1 << 40


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that are shown as one: mostly one token, more where a character is made of several.

    Attributes:
        text: What they say.
        tokens: Their number.
        mark: Structural tokens, which only the layout places.
        predicted: They are generation targets.
        run: They are inputs of the language model; the last target of a document is none.
    """

    text: str
    tokens: int
    mark: bool = False
    predicted: bool = True
    run: bool = True


@dataclass(frozen=True, slots=True)
class TextRow:
    """The text between two images."""

    use: TextUse
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image in its place.

    Attributes:
        image: Index into ``document.images``.
        state: ``pair``: it takes part in L_con; ``unanchored``: only the language model reads it;
            ``unused``: not encoded; ``cut``: it does not fit.
        pair: Number of its pair in the document, from 1; None without one.
        why: Why it is not a pair, or why the language model does not read it; empty otherwise.
        context: Text tokens before it.
        pieces: Its structural tokens.
    """

    image: int
    state: ImageState
    pair: int | None
    why: str
    context: int = 0
    pieces: tuple[Piece, ...] = ()


Row = TextRow | ImageRow


@dataclass(frozen=True, slots=True)
class DocumentView:
    """A document laid out, in rows from top to bottom.

    Attributes:
        document: The document.
        layout: Its layout.
        rows: What is left of it.
        cut: What was cut at ``max_tokens``.
    """

    document: Document
    layout: TokenLayout
    rows: tuple[Row, ...]
    cut: tuple[Row, ...]

    @property
    def images(self) -> list[ImageRow]:
        """The rows of all images, in reading order."""
        return [row for row in (*self.rows, *self.cut) if isinstance(row, ImageRow)]

    @property
    def targets(self) -> int:
        """Number of generation targets."""
        return int((self.layout.targets != IGNORE).sum())

    @property
    def text_tokens(self) -> int:
        """Text tokens of the document, those cut included."""
        texts = (row for row in (*self.rows, *self.cut) if isinstance(row, TextRow))
        return sum(piece.tokens for row in texts for piece in row.pieces if not piece.mark)


@dataclass(frozen=True, slots=True)
class Viewer:
    """Lays documents out as a run with this seed does in this epoch.

    Attributes:
        tokenizer: Encodes the texts.
        rules: How documents become tokens.
        seed: Seed of the run.
        epoch: Epoch, from 0; floating images stand elsewhere in another one.
        augmentation: How images are varied.
    """

    tokenizer: Tokenizer
    rules: LayoutRules
    seed: int
    epoch: int
    augmentation: Augmentation = OPEN_CLIP

    def __post_init__(self) -> None:
        """Raise ConfigError if the context cannot hold an image and a text."""
        self.rules.check_room(self.rules.tokens_per_image)

    def view(self, document: Document) -> DocumentView:
        """Return a document as the model will see it."""
        layout = self._lay_out(document, self.rules)
        rows = [*self._rows(layout), *self._end(layout)]
        unused = sorted(set(range(len(document.images))) - set(layout.images.tolist()))
        kept = len(unused) - layout.cut_images
        if unused[:kept]:
            rows += self._unused(layout, unused[:kept])
        cut = self._cut(document, layout, unused[kept:]) if layout.cut_tokens or layout.cut_images else ()
        return DocumentView(document, layout, tuple(_merged(rows)), tuple(cut))

    def _lay_out(self, document: Document, rules: LayoutRules) -> TokenLayout:
        return lay_out(
            document, self.tokenizer, rules, sample_rng(self.seed, self.epoch, document.id, "layout")
        )

    def _rows(self, layout: TokenLayout) -> Iterator[Row]:
        """Yield the rows of the tokens that run through the language model."""
        predicted = np.append(False, layout.targets[:-1] != IGNORE).tolist()
        last_anchor = int(layout.anchors.max(initial=-1))
        position, pair = 0, 0
        for number, image in enumerate(layout.images.tolist()):
            anchor, start = int(layout.anchors[number]), int(layout.image_starts[number])
            begin = anchor if anchor >= 0 else start - 1
            yield from self._text(layout.tokens[position:begin], begin <= last_anchor)
            pieces = self._image_pieces(predicted[begin], True, start >= 0)
            context = self._count_text(layout.tokens[:begin])
            if anchor >= 0:
                pair += 1
                yield ImageRow(image, "pair", pair, _not_read(layout, start), context, pieces)
            else:
                yield ImageRow(image, "unanchored", None, self._too_little(begin, context), context, pieces)
            position = begin + (self.rules.tokens_per_image + 2 if start >= 0 else 1)
        yield from self._text(layout.tokens[position:], False)

    def _text(self, ids: np.ndarray, context: bool) -> Iterator[TextRow]:
        """Yield the row of text, if there is any; ``<start_of_text>`` stands in the first one."""
        opens = bool(len(ids) > 0 and ids[0] == self.tokenizer.start_of_text)
        mark = [Piece("<start_of_text>", 1, mark=True, predicted=False)] if opens else []
        if len(ids):
            pieces = pieces_of(ids[opens:].tolist(), self.tokenizer)
            yield TextRow("context" if context else "target", (*mark, *pieces))

    def _end(self, layout: TokenLayout) -> Iterator[TextRow]:
        """Yield the last target, which is no input, unless it opens an image that is not used."""
        last = int(layout.targets[-1]) if len(layout.targets) else IGNORE
        if last == self.tokenizer.end_of_text:
            yield TextRow("target", (Piece("<end_of_text>", 1, mark=True, run=False),))
        elif last not in (IGNORE, self.tokenizer.start_of_image):
            piece = Piece(self.tokenizer.decode([last]), 1, run=False)
            yield TextRow("target", (piece,))

    def _unused(self, layout: TokenLayout, images: list[int]) -> Iterator[ImageRow]:
        """Yield the images at the end that feed no loss."""
        context = self._count_text(np.append(layout.tokens, layout.targets[-1:]))
        for image in images:
            predicted = self.tokenizer.start_of_image in layout.targets[-1:]
            why = f"{self._too_little(len(layout.tokens), context)}, and no text follows"
            pieces = self._image_pieces(predicted, False, False)
            yield ImageRow(image, "unused", None, why, context, pieces)

    def _cut(self, document: Document, layout: TokenLayout, images: list[int]) -> Iterator[Row]:
        """Yield what does not fit, in the order of the same document laid out without a limit."""
        rules = replace(self.rules, max_tokens=_NO_LIMIT, tokens_per_image=1)
        structural = structural_ids(self.tokenizer)
        whole = self._lay_out(document, rules)
        last = [int(token) for token in whole.targets[-1:] if token != IGNORE]
        starts = np.where(whole.anchors >= 0, whole.anchors, whole.image_starts - 1).tolist()
        image_at = dict(zip(starts, whole.images.tolist(), strict=True))
        skipped = self._count_text(np.append(layout.tokens, layout.targets[-1:]))
        left: list[int] = []
        seen: list[int] = []
        for position, token in enumerate([*whole.tokens.tolist(), *last]):
            if position in image_at and image_at[position] in images:
                yield from _ignored(left, self.tokenizer)
                left, seen = [], [*seen, image_at[position]]
                yield ImageRow(seen[-1], "cut", None, "does not fit in max_tokens")
            elif token not in structural:
                skipped -= 1
                if skipped < 0:
                    left.append(token)
        yield from _ignored(left, self.tokenizer)
        for image in sorted(set(images) - set(seen)):  # at the very end, where it feeds no loss anyhow
            yield ImageRow(image, "cut", None, "does not fit in max_tokens")

    def _count_text(self, tokens: np.ndarray) -> int:
        return int((~np.isin(tokens, [*structural_ids(self.tokenizer), IGNORE])).sum())

    def _image_pieces(self, predicted: bool, run: bool, slots_run: bool) -> tuple[Piece, ...]:
        slots = self.rules.tokens_per_image
        return (
            Piece("<start_of_img>", 1, True, predicted, run),
            Piece(f"{slots} image tokens", slots, True, False, slots_run),
            Piece("<end_of_img>", 1, True, False, slots_run),
        )

    def _too_little(self, position: int, context: int) -> str:
        """Say why an image at a position, with that many text tokens before it, is in no pair."""
        if position == 0:
            return "opens the document"
        if not context:
            return "no text before it"
        return f"{context} text token{'s'[: context > 1]} before it, {self.rules.min_context_tokens} needed"


def _not_read(layout: TokenLayout, start: int) -> str:
    """Say why the language model does not read an image that is in a pair; empty if it does."""
    if start >= 0:
        return ""
    left = layout.cut_tokens or layout.cut_images
    return "the language model does not read it: " + ("what follows is cut" if left else "no text follows")


def pieces_of(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield text tokens as they read; those that are parts of one character stay together."""
    held: list[int] = []
    for token in ids:
        held.append(token)
        text = tokenizer.decode(held)
        if "�" not in text or len(held) == 4:  # a character has at most 4 bytes
            yield Piece(text, len(held))
            held = []
    if held:
        yield Piece(tokenizer.decode(held), len(held))


def _ignored(ids: list[int], tokenizer: Tokenizer) -> Iterator[TextRow]:
    if ids:
        pieces = (replace(p, predicted=False, run=False) for p in pieces_of(ids, tokenizer))
        yield TextRow("ignored", tuple(pieces))


def _merged(rows: Iterable[Row]) -> list[Row]:
    """Join rows of text that follow each other and are used alike."""
    merged: list[Row] = []
    for row in rows:
        last = merged[-1] if merged else None
        if isinstance(row, TextRow) and isinstance(last, TextRow) and row.use == last.use:
            merged[-1] = TextRow(row.use, (*last.pieces, *row.pieces))
        else:
            merged.append(row)
    return merged
