"""Token layout of text with images beside it: each image is one token in its place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lcl_composer.data.document import Document
from lcl_composer.data.interleave import LayoutRules, TokenLayout, filled, place_pieces
from lcl_composer.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Tagged:
    """The text, and ``<start_of_img>`` where an image stands: the image itself takes no slots.

    ``<start_of_text>`` opens a document that begins with text, ``<end_of_text>`` closes one that ends with
    text. Every position but the last predicts the next token. An image is read from its token on up to the
    next image's; one with nothing behind it is read by no loss and is left out.

    Attributes:
        tokenizer: Encodes the texts; structural tokens spelled out in a text are dropped.
        rules: Of which ``max_tokens`` and ``image_first_probability`` are read.
    """

    tokenizer: Tokenizer
    rules: LayoutRules

    def __post_init__(self) -> None:
        """Raise ConfigError if the context cannot hold an image's token and a token of text."""
        self.rules.check_room(0, marks=2)

    def __call__(self, document: Document, rng: np.random.Generator) -> TokenLayout:
        """Lay out a document, cut at ``max_tokens``; ``rng`` draws the side of each floating image."""
        pieces = place_pieces(document, self.tokenizer, self.rules.image_first_probability, rng)
        tokens: list[int] = []
        tags: list[tuple[int, int]] = []  # image, the position of its token
        for piece in pieces:
            if isinstance(piece, list):
                tokens += piece if tokens else [self.tokenizer.start_of_text, *piece]
            else:
                tags.append((piece, len(tokens)))
                tokens.append(self.tokenizer.start_of_image)
        ends_with_text = bool(pieces) and isinstance(pieces[-1], list)
        if ends_with_text:
            tokens.append(self.tokenizer.end_of_text)
        beyond = max(0, len(tokens) - self.rules.max_tokens)
        cut_images = sum(position >= self.rules.max_tokens for _, position in tags)
        return _predict_next(
            np.array(tokens[: self.rules.max_tokens], dtype=np.int64),
            tags,
            cut_tokens=max(0, beyond - cut_images - ends_with_text),
            cut_images=cut_images,
        )

    def full_document(self) -> Document:
        """An image a token, but for the last token, which only the one before it predicts."""
        return filled(self.rules.max_tokens - 1, self.rules.max_tokens)


def _predict_next(
    tokens: np.ndarray, tags: list[tuple[int, int]], cut_tokens: int, cut_images: int
) -> TokenLayout:
    """Every token but the first is predicted; the last one and an image that stands there are no input."""
    inputs = tokens[:-1]
    kept = [(image, position) for image, position in tags if position < len(inputs)]
    return TokenLayout(
        tokens=inputs,
        targets=tokens[1:],
        images=np.array([image for image, _ in kept], dtype=np.int64),
        image_starts=np.array([position for _, position in kept], dtype=np.int64),
        anchors=np.full(len(kept), -1, dtype=np.int64),
        cut_tokens=cut_tokens,
        cut_images=cut_images,
    )
