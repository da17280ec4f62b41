"""Token layout of pairs: a text between its structural tokens, and an image that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lcl_composer.data.batch import IGNORE
from lcl_composer.data.document import Document, Text
from lcl_composer.data.interleave import LayoutRules, TokenLayout, filled
from lcl_composer.data.tokenizer import Tokenizer, structural_ids
from lcl_composer.errors import DataError


@dataclass(frozen=True)
class Paired:
    """``<start_of_text>``, the text, ``<end_of_text>``, and the image beside it (OpenCLIP) or before it.

    The anchor of the image is ``<end_of_text>``. A text that is too long is cut before it. The image has a
    seed, by which a method may draw what it is compared with. Of several texts, captions of the image, one is
    drawn each epoch; those without a token are passed over.

    Attributes:
        tokenizer: Encodes the texts.
        rules: Of which ``max_tokens`` is read.
        predicts: Whether each position of the text is to predict the next token; else none predicts.
        slots: Slots of the image before the text, 0 where it takes none.
    """

    tokenizer: Tokenizer
    rules: LayoutRules
    predicts: bool = False
    slots: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError if the context cannot hold the image's slots and one token of text."""
        self.rules.check_room(self.slots, marks=2)

    def __call__(self, document: Document, rng: np.random.Generator) -> TokenLayout:
        """Lay out a pair.

        Raises:
            DataError: If the document is not one image and its texts, or none of these has a token.
        """
        texts = [segment.text for segment in document.segments if isinstance(segment, Text)]
        if len(document.images) != 1 or not texts:
            raise DataError(
                f"document {document.id!r}: {len(document.images)} images and {len(texts)} texts, not one of "
                "each; this method takes pairs, as lcl convert captions, coco, img2dataset or pairs make"
            )
        ids = self._draw(texts, rng)
        if not ids:
            raise DataError(f"document {document.id!r}: nothing to learn from, its text is empty")
        room = self.rules.max_tokens - self.slots - 2
        image = [self.tokenizer.image_placeholder] * self.slots
        text = [self.tokenizer.start_of_text, *ids[:room], self.tokenizer.end_of_text]
        tokens = np.array([*image, *text], dtype=np.int64)
        targets = np.full(len(tokens), IGNORE, dtype=np.int64)
        if self.predicts:
            targets[self.slots : -1] = tokens[self.slots + 1 :]
        return TokenLayout(
            tokens=tokens,
            targets=targets,
            images=np.zeros(1, dtype=np.int64),
            image_starts=np.array([0 if self.slots else -1]),
            anchors=np.array([len(tokens) - 1]),
            cut_tokens=max(0, len(ids) - room),
            cut_images=0,
            seeds=rng.integers(np.iinfo(np.int64).min, np.iinfo(np.int64).max, 1),
        )

    def full_document(self) -> Document:
        """An image and a text that fills the context."""
        return filled(1, self.rules.max_tokens)

    def _draw(self, texts: list[str], rng: np.random.Generator) -> list[int]:
        """Ids of one of the texts that have any; nothing is drawn where there is no choice."""
        structural = structural_ids(self.tokenizer)
        order = rng.permutation(len(texts)) if len(texts) > 1 else range(len(texts))
        for number in order:
            if ids := [i for i in self.tokenizer.encode(texts[number]) if i not in structural]:
                return ids
        return []
