"""What a document costs to train on, by the method's own count of operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lcl_composer.data.balance import DocumentCost
from lcl_composer.data.collate import collate, make_sample
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.errors import DataError

if TYPE_CHECKING:
    from lcl_composer.data.interleave import Layout, LayoutRules
    from lcl_composer.data.tokenizer import Tokenizer
    from lcl_composer.methods.method import Method

_SENTENCE = "The tower of the old church stands above the river, and the bridge leads to the market place. "


def document_cost(
    model: Method, tokenizer: Tokenizer, layout: Layout, rules: LayoutRules
) -> DocumentCost | None:
    """What a byte of text and an image cost, of three documents that differ in nothing else.

    Counted is the forward, which the backward is a multiple of; what a pair of positions costs in attention
    is a part of a byte's. Where a method takes one image a document, it is the texts that differ.

    Returns:
        None for a method whose layout takes no such documents, but questions and answers or images of known
        classes: theirs are of about one size.
    """

    def flops(sentences: int, images: int) -> tuple[int, int]:
        text, picture = Text(_SENTENCE * sentences), Image(b"", floats=True)
        document = Document("cost", "", (*[picture] * (images - 1), text, picture))
        laid = layout(document, np.random.default_rng(0))
        pixels = torch.empty(len(laid.images), 3, 1, 1, dtype=torch.uint8)
        batch = collate([make_sample("cost", laid, pixels)])
        return sum(model.forward_flops(batch).values()), len(laid.tokens)

    try:
        short, long = flops(1, 1), flops(2, 1)
        tokens = len(tokenizer.encode(_SENTENCE))
    except DataError:
        return None
    try:
        second = flops(1, 2)
    except DataError:  # a method of pairs
        second = short
    length = len(_SENTENCE.encode())
    return DocumentCost(
        byte=max(0, long[0] - short[0]) / length,
        image=max(0, second[0] - short[0]),
        bytes_per_token=length / max(1, tokens),
        tokens_per_image=max(0, second[1] - short[1]),
        max_tokens=rules.max_tokens,
    )
