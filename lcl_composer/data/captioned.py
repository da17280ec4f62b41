"""Token layout of what is written about an image: a caption, or the answer to a question."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lcl_composer.data.batch import IGNORE
from lcl_composer.data.document import Document, Text
from lcl_composer.data.interleave import LayoutRules, TokenLayout, filled
from lcl_composer.data.tokenizer import Tokenizer, structural_ids
from lcl_composer.errors import DataError

#: Stands for the question in a prompt.
QUESTION = "{}"


@dataclass(frozen=True)
class Captioned:
    """The image's slots, ``<start_of_text>``, the prompt, and the text, whose tokens alone are predicted.

    The texts of a document are captions of its image, of which one is drawn each epoch. Where the prompt
    asks, the first text is the question and the others its answers: one that several gave is drawn as often.
    The last token predicts ``<end_of_text>``; a text that is too long is cut, and then its end is not.

    Attributes:
        tokenizer: Encodes the texts; structural tokens spelled out in a text are dropped.
        rules: Of which ``tokens_per_image`` and ``max_tokens`` are read.
        prompt: What precedes the text, a question in it as ``{}``; "" for nothing.
    """

    tokenizer: Tokenizer
    rules: LayoutRules
    prompt: str = ""

    def __post_init__(self) -> None:
        """Raise ConfigError if the context cannot hold an image and a token of text."""
        self.rules.check_room(self.rules.tokens_per_image, marks=1)

    def __call__(self, document: Document, rng: np.random.Generator) -> TokenLayout:
        """Lay out a document; ``rng`` draws the text.

        Raises:
            DataError: If the document has not one image, nothing to write, or a prompt that leaves no room.
        """
        prompt, text = self._draw(document, rng)
        before, ids = self._encode(prompt, text)
        if not ids:
            raise DataError(f"document {document.id!r}: nothing to learn from, the text {text!r} is empty")
        inputs = [self.tokenizer.image_placeholder] * self.rules.tokens_per_image
        inputs += [self.tokenizer.start_of_text, *before]
        room = self.rules.max_tokens - len(inputs)
        if room < 1:
            raise DataError(
                f"document {document.id!r}: its prompt has {len(before)} tokens, {1 - room} too many beside "
                f"the image; raise data.max_tokens = {self.rules.max_tokens}"
            )
        end = [self.tokenizer.end_of_text] if len(ids) <= room else []
        predicted = [*ids[:room], *end]
        tokens = np.array([*inputs, *ids[:room]], dtype=np.int64)
        targets = np.full(len(tokens), IGNORE, dtype=np.int64)
        first = len(inputs) - 1
        targets[first : first + len(predicted)] = predicted
        kept = len(tokens) if end else len(tokens) - 1  # the last token of a cut text predicts nothing
        return TokenLayout(
            tokens=tokens[:kept],
            targets=targets[:kept],
            images=np.zeros(1, dtype=np.int64),
            image_starts=np.zeros(1, dtype=np.int64),
            anchors=np.full(1, -1),
            cut_tokens=max(0, len(ids) - room),
            cut_images=0,
        )

    def full_document(self) -> Document:
        """An image, a question of a word where the prompt asks, and a text that fills the context."""
        return filled(1, self.rules.max_tokens, words=int(QUESTION in self.prompt))

    def _draw(self, document: Document, rng: np.random.Generator) -> tuple[str, str]:
        """The prompt of a document, and one of its texts."""
        asks = QUESTION in self.prompt
        first, *others = [s.text for s in document.segments if isinstance(s, Text)] or [""]
        texts = [text for text in (others if asks else [first, *others]) if text.strip()]
        if len(document.images) != 1 or not texts:
            wanted = "a question and its answers" if asks else "one caption or more"
            maker = "table --question-column" if asks else "captions"
            raise DataError(
                f"document {document.id!r}: {len(document.images)} images and {len(texts) + asks} texts, not "
                f"one image and {wanted}, as lcl convert {maker} makes"
            )
        prompt = self.prompt.replace(QUESTION, first) if asks else self.prompt
        return prompt, texts[int(rng.integers(len(texts)))]

    def _encode(self, prompt: str, text: str) -> tuple[list[int], list[int]]:
        """Ids of the prompt, and of the text as it is written behind it."""
        structural = structural_ids(self.tokenizer)

        def ids(written: str) -> list[int]:
            return [i for i in self.tokenizer.encode(written) if i not in structural]

        before = ids(prompt) if prompt else []
        # Many tokenizers have other ids for a word behind a blank.
        whole = ids(f"{prompt} {text}") if prompt else ids(text)
        joins = whole[: len(before)] == before
        return before, whole[len(before) :] if joins else ids(text)
