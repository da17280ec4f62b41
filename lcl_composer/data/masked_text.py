"""Token layout of masked modelling: images in their places, some of the text hidden, and of their patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lcl_composer.data.batch import IGNORE
from lcl_composer.data.document import Document
from lcl_composer.data.hidden_patches import HiddenPatches
from lcl_composer.data.interleave import LayoutRules, TokenLayout, filled, put_in_order
from lcl_composer.data.tokenizer import Tokenizer, structural_ids


@dataclass(frozen=True)
class MaskedText:
    """A share of a document's text tokens becomes ``<img_placehold>``; each of these predicts itself.

    That token stands for what is hidden in an image's slots too, and its embedding is else never read. All
    positions see one another, so that nothing of a document with a hidden token is dead work; one without
    text is empty.

    Attributes:
        tokenizer: Encodes the texts.
        rules: How to lay out.
        ratio: Share of the text tokens hidden beside images, rounded, at least one token.
        text_ratio: The same in a document without images.
        patches: Which patches of each image are hidden; None: images are whole.
    """

    tokenizer: Tokenizer
    rules: LayoutRules
    ratio: float
    text_ratio: float
    patches: HiddenPatches | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError if the context cannot hold an image and a text."""
        self.rules.check_room(self.rules.tokens_per_image)

    def __call__(self, document: Document, rng: np.random.Generator) -> TokenLayout:
        """Lay out a document; ``rng`` draws sides of floating images, then what to hide: tokens, patches."""
        sequence = put_in_order(document, self.tokenizer, self.rules, rng)
        tokens = np.array(sequence.tokens if sequence.text_tokens else [], dtype=np.int64)
        starts = sequence.starts if sequence.text_tokens else []
        text = np.flatnonzero(~np.isin(tokens, list(structural_ids(self.tokenizer))))
        count = max(1, round(len(text) * (self.ratio if starts else self.text_ratio)))
        hidden = rng.permutation(text)[:count]
        targets = np.full(len(tokens), IGNORE, dtype=np.int64)
        targets[hidden], tokens[hidden] = tokens[hidden], self.tokenizer.image_placeholder
        return TokenLayout(
            tokens=tokens,
            targets=targets,
            images=np.array([image for image, _, _ in starts], dtype=np.int64),
            image_starts=np.array([position + 1 for _, position, _ in starts], dtype=np.int64),
            anchors=np.full(len(starts), -1),
            cut_tokens=sequence.cut_tokens,
            cut_images=sequence.cut_images,
            hidden_patches=self.patches.draw(len(starts), rng) if self.patches else None,
        )

    def full_document(self) -> Document:
        """Images, and at least a token of text to hide."""
        images = (self.rules.max_tokens - 1) // (self.rules.tokens_per_image + 2)
        return filled(images, self.rules.max_tokens)
