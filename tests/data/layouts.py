"""A tokenizer of numbers and short-hands for documents, shared by the layout tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lcl_composer.data.document import Document, Image, Text


class NumberTokenizer:
    """Texts are numbers set apart by blanks: ``"3 4"`` has the ids 3 and 4."""

    def __init__(self, first_special: int = 507) -> None:
        self.start_of_text = first_special
        self.end_of_text = first_special + 1
        self.image_placeholder = first_special + 2
        self.start_of_image = first_special + 3
        self.end_of_image = first_special + 4
        self.vocab_size = first_special + 5

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(i) for i in ids)


def document(*segments: str | Image, name: str = "d") -> Document:
    return Document(name, "test", tuple(Text(s) if isinstance(s, str) else s for s in segments))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


FIXED = Image(b"x")
FLOATS = Image(b"x", floats=True)
