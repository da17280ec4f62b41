"""Token layout: where text and images of a document stand, and which positions the losses see.

The layout is that of the code released with LCL (arXiv 2406.07543, section 3.3). An image is
``<start_of_img>``, k ``<img_placehold>`` slots and ``<end_of_img>``; ``<start_of_text>`` opens a document
that begins with text, ``<end_of_text>`` closes one that ends with text. What no loss can see is cut off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from lcl_composer.data.batch import IGNORE
from lcl_composer.data.document import Document, Image, Segment, Text
from lcl_composer.data.tokenizer import Tokenizer, structural_ids
from lcl_composer.errors import ConfigError

#: ``<start_of_text>``, ``<end_of_text>``, ``<start_of_img>``, ``<end_of_img>`` of a pair.
_PAIR_SPECIALS = 4


@dataclass(frozen=True, slots=True)
class LayoutRules:
    """How documents become tokens.

    Attributes:
        tokens_per_image: Image slots k, the number of patch tokens of an image.
        max_tokens: Longest token sequence of a document (the LM's context).
        image_first_probability: Chance that a floating image goes before its text.
        min_context_tokens: An image with fewer text tokens before it takes no part in L_con.

    Raises:
        ConfigError: If a value is out of range.
    """

    tokens_per_image: int
    max_tokens: int
    image_first_probability: float = 0.5
    min_context_tokens: int = 1

    def __post_init__(self) -> None:
        if self.tokens_per_image < 1:
            raise ConfigError(f"an image has {self.tokens_per_image} tokens; it needs 1 at least")
        if not 0.0 <= self.image_first_probability <= 1.0:
            raise ConfigError(
                f"data.image_first_probability = {self.image_first_probability} is not between 0 and 1"
            )
        if self.min_context_tokens < 0:
            raise ConfigError(f"data.min_context_tokens = {self.min_context_tokens} is negative")

    def check_room(self, slots: int, marks: int = _PAIR_SPECIALS) -> None:
        """Refuse a context that cannot hold the slots of an image, the marks around it and a token of text.

        Raises:
            ConfigError: If it is too short.
        """
        least = slots + marks + 1
        if self.max_tokens < least:
            raise ConfigError(
                f"data.max_tokens = {self.max_tokens} cannot hold an image of {slots} tokens and a text; set "
                f"it to at least {least} or use larger patches"
            )


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """A document as the language model gets it.

    Attributes:
        tokens: LM inputs up to the last position that a loss sees, int64 [T].
        targets: The token that each position predicts, or IGNORE, int64 [T].
        images: Images to encode in the order of ``tokens``, as indices into ``document.images``, int64 [I].
        image_starts: Position of each image's first slot, -1 if its slots do not run through the LM, [I].
        anchors: Position of each image's ``<start_of_img>``, -1 if it takes no part in L_con, int64 [I].
        cut_tokens: Text tokens left out because the document is longer than the context.
        cut_images: Images left out for the same reason.
        seeds: What the method draws from for each image on the device, int64 [I]; None: it draws nothing.
        hidden_patches: Numbers of the n patches of each image that the encoder must not see, int64 [I, n];
            None: it sees all.
    """

    tokens: np.ndarray
    targets: np.ndarray
    images: np.ndarray
    image_starts: np.ndarray
    anchors: np.ndarray
    cut_tokens: int
    cut_images: int
    seeds: np.ndarray | None = None
    hidden_patches: np.ndarray | None = None


class Readers(NamedTuple):
    """The losses that read an interleaved layout; what none of them does is cut off.

    Attributes:
        generation: Predicts the text. Without it a document that no other loss reads keeps one token: it is
            no bad one, and other draws of its images' sides may differ.
        contrast: Contrasts anchored images with what precedes them.
        regression: Predicts the slots of every image, so that all of them stay. Of an image that ends a
            document the last slot runs too, though it predicts nothing, so that all images have as many.
    """

    generation: bool = True
    contrast: bool = True
    regression: bool = False


_LCL = Readers()


class Layout(Protocol):
    """What a method does to a document; picklable, as loader processes call it."""

    def __call__(self, document: Document, rng: np.random.Generator) -> TokenLayout:
        """Lay out a document; ``rng`` is keyed on (seed, epoch, document)."""
        ...

    def full_document(self) -> Document:
        """A document of as many images as the losses read of one, and as much text as fits beside them."""
        ...


def filled(images: int, max_tokens: int, words: int = 0) -> Document:
    """A document of images, and then text that fills a context.

    Args:
        images: How many.
        max_tokens: The context.
        words: Of a text in front of the last images: all but the first, unless that is the only one.
    """
    segments: list[Segment] = [Image(b"")] * images
    if words:
        segments.insert(images > 1, Text("1 " * words))
    return Document("full", "made up", (*segments, Text("1 " * max_tokens)))


def most_images(layout: Layout) -> int | None:
    """Images that the losses read of a document at most; None where a drop-in's layout does not say."""
    if not hasattr(layout, "full_document"):
        return None
    return len(layout(layout.full_document(), np.random.default_rng(0)).images)


@dataclass(frozen=True)
class Interleaved:
    """Images as tokens in their places among the text, see :func:`lay_out`.

    Attributes:
        tokenizer: Encodes the texts.
        rules: How to lay out.
        readers: The losses; LCL's unless others are named.
    """

    tokenizer: Tokenizer
    rules: LayoutRules
    readers: Readers = _LCL

    def __post_init__(self) -> None:
        """Raise ConfigError if the context cannot hold an image and a text."""
        self.rules.check_room(self.rules.tokens_per_image)

    def __call__(self, document: Document, rng: np.random.Generator) -> TokenLayout:
        """Lay out a document."""
        return lay_out(document, self.tokenizer, self.rules, rng, self.readers)

    def full_document(self) -> Document:
        """See :class:`Layout`; where it costs no image, all but the first are anchored."""
        rules, (generation, contrast, regression) = self.rules, self.readers
        words = rules.min_context_tokens
        anchored = contrast and not regression and (words <= 1 or not generation)
        # A token that stands behind an image is enough for generation to read it, regression needs none.
        text = words if anchored else 0 if regression else 1
        images = (rules.max_tokens - text) // (rules.tokens_per_image + 2)
        return filled(images, rules.max_tokens, words if anchored else 0)


@dataclass(slots=True)
class TokenSequence:
    """Tokens of a document while it is laid out, before dead work is cut.

    Attributes:
        rules: How it is laid out.
        tokens: What the language model would get.
        predicted: Of each token, whether it may be a generation target.
        starts: Of each image its index, the position of its ``<start_of_img>``, and whether it is anchored.
        text_tokens: Text tokens among ``tokens``.
        cut_tokens: Text tokens left out because the document is longer than the context.
        cut_images: Images left out for the same reason.
    """

    rules: LayoutRules
    tokens: list[int] = field(default_factory=list)
    predicted: list[bool] = field(default_factory=list)
    starts: list[tuple[int, int, bool]] = field(default_factory=list)
    text_tokens: int = 0
    cut_tokens: int = 0
    cut_images: int = 0

    @property
    def is_cut(self) -> bool:
        """Whether something was left out, so that nothing may follow."""
        return self.cut_tokens > 0 or self.cut_images > 0

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return 0 if self.is_cut else self.rules.max_tokens - len(self.tokens)

    def add(self, ids: Iterable[int], predicted: bool) -> None:
        """Append tokens."""
        before = len(self.tokens)
        self.tokens.extend(ids)
        self.predicted.extend([predicted] * (len(self.tokens) - before))

    def add_text(self, ids: list[int]) -> None:
        """Append as much of a text as fits."""
        kept = ids[: self.room]
        self.add(kept, True)
        self.text_tokens += len(kept)
        self.cut_tokens += len(ids) - len(kept)

    def add_image(self, index: int, tokenizer: Tokenizer) -> None:
        """Append an image if it fits."""
        if self.room < self.rules.tokens_per_image + 2:
            self.cut_images += 1
            return
        position = len(self.tokens)
        # As in the released code an image that opens the document has no context and is never anchored.
        anchored = position > 0 and self.text_tokens >= self.rules.min_context_tokens
        self.starts.append((index, position, anchored))
        self.add([tokenizer.start_of_image], True)
        self.add([tokenizer.image_placeholder] * self.rules.tokens_per_image, False)
        self.add([tokenizer.end_of_image], False)


def lay_out(
    document: Document,
    tokenizer: Tokenizer,
    rules: LayoutRules,
    rng: np.random.Generator,
    readers: Readers = _LCL,
) -> TokenLayout:
    """Lay out a document's tokens, targets, images and anchors.

    Args:
        document: The document.
        tokenizer: Encodes the texts; structural tokens spelled out in a text are dropped.
        rules: How to lay out.
        rng: Draws the side of each floating image, one number each.
        readers: The losses; LCL's unless others are named.

    Returns:
        The layout. It is empty (T = 0, I = 0) when no loss can see anything of the document.
    """
    return _cut_dead_work(put_in_order(document, tokenizer, rules, rng), readers)


def put_in_order(
    document: Document, tokenizer: Tokenizer, rules: LayoutRules, rng: np.random.Generator
) -> TokenSequence:
    """The tokens of a document with its images in their places, as they fit into the context.

    Cut at ``rules.max_tokens``: a text may be cut anywhere, an image that does not fit ends the document.
    Of a pair (one image, one text) the text is shortened first, so that the image always stays.
    """
    pieces = place_pieces(document, tokenizer, rules.image_first_probability, rng)
    sequence = TokenSequence(rules)
    shortened = _shorten_pair(pieces, rules)
    if pieces and isinstance(pieces[0], list):
        sequence.add([tokenizer.start_of_text], False)
    for piece in pieces:
        if isinstance(piece, list):
            sequence.add_text(piece)
        else:
            sequence.add_image(piece, tokenizer)
    if pieces and isinstance(pieces[-1], list) and sequence.room > 0:
        sequence.add([tokenizer.end_of_text], True)
    sequence.cut_tokens += shortened
    return sequence


def place_pieces(
    document: Document, tokenizer: Tokenizer, image_first_probability: float, rng: np.random.Generator
) -> list[list[int] | int]:
    """Token ids of each text that has any and the index of each image, floating images drawn to a side."""
    return _encode(_place_floating(document, image_first_probability, rng), tokenizer)


def _place_floating(
    document: Document, image_first_probability: float, rng: np.random.Generator
) -> list[tuple[int, Segment]]:
    """Return ``(image index or -1, segment)`` with each floating image before or after its text."""
    placed: list[tuple[int, Segment]] = []
    after: list[tuple[int, Segment]] = []
    last_text = max((i for i, s in enumerate(document.segments) if isinstance(s, Text)), default=-1)
    image = 0
    for i, segment in enumerate(document.segments):
        if isinstance(segment, Text):
            placed += [(-1, segment), *after]
            after = []
            continue
        # A floating image with no text behind it has nothing to float around.
        moves = segment.floats and i < last_text and rng.random() >= image_first_probability
        (after if moves else placed).append((image, segment))
        image += 1
    return placed


def _encode(placed: list[tuple[int, Segment]], tokenizer: Tokenizer) -> list[list[int] | int]:
    """Return token ids for each text that has any, the image index for each image."""
    structural = structural_ids(tokenizer)
    pieces: list[list[int] | int] = []
    for image, segment in placed:
        if not isinstance(segment, Text):
            pieces.append(image)
        elif ids := [i for i in tokenizer.encode(segment.text) if i not in structural]:
            pieces.append(ids)
    return pieces


def _shorten_pair(pieces: list[list[int] | int], rules: LayoutRules) -> int:
    """Shorten the text of a pair in place so that its image fits; return the number of tokens cut."""
    if len(pieces) != 2 or isinstance(pieces[0], list) == isinstance(pieces[1], list):
        return 0
    text = next(piece for piece in pieces if isinstance(piece, list))
    surplus = max(0, len(text) - (rules.max_tokens - rules.tokens_per_image - _PAIR_SPECIALS))
    del text[len(text) - surplus :]
    return surplus


def _cut_dead_work(sequence: TokenSequence, readers: Readers) -> TokenLayout:
    """End the LM input at the last position that a loss reads, and drop images that feed no loss."""
    tokens = np.array(sequence.tokens, dtype=np.int64)
    targets = np.full(len(tokens), IGNORE, dtype=np.int64)
    if readers.generation:
        targets[:-1] = np.where(sequence.predicted[1:], tokens[1:], IGNORE)
    starts = [(image, p, anchored and readers.contrast) for image, p, anchored in sequence.starts]
    read = [p for _, p, anchored in starts if anchored]
    read += [p + sequence.rules.tokens_per_image for _, p, _ in starts if readers.regression]
    least = -1 if readers.generation else 0
    last = max([least, *np.flatnonzero(targets != IGNORE)[-1:], *read])
    kept = [s for s in starts if s[2] or s[1] < last]
    return TokenLayout(
        tokens=tokens[: last + 1],
        targets=targets[: last + 1],
        images=np.array([image for image, _, _ in kept], dtype=np.int64),
        image_starts=np.array([p + 1 if p < last else -1 for _, p, _ in kept], dtype=np.int64),
        anchors=np.array([p if anchored else -1 for _, p, anchored in kept], dtype=np.int64),
        cut_tokens=sequence.cut_tokens,
        cut_images=sequence.cut_images,
    )
