"""Costs of documents are those that the method counts for them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from lcl_composer.data.collate import collate, make_sample
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.interleave import LayoutRules
from lcl_composer.data.sizes import size_of
from lcl_composer.data.tokenizer import CLIPTokenizer
from lcl_composer.methods.classify import Classify
from lcl_composer.methods.clip import CLIP
from lcl_composer.methods.cost import document_cost
from lcl_composer.methods.lcl import LCL
from tests.models.tiny import TOKENS_PER_IMAGE, tiny_method

TOKENIZER, RULES = CLIPTokenizer(), LayoutRules(TOKENS_PER_IMAGE, 500)
TEXT = "A red boat lies on the white beach in front of a row of small houses with blue doors. "


def flops(model: LCL, document: Document) -> int:
    """What the method counts for a document."""
    laid = model.layout(TOKENIZER, RULES)(document, np.random.default_rng(0))
    pixels = torch.empty(len(laid.images), 3, 1, 1, dtype=torch.uint8)
    return sum(model.forward_flops(collate([make_sample("d", laid, pixels)])).values())


@pytest.mark.parametrize(("sentences", "images"), [(2, 1), (4, 3), (1, 5)])
def test_the_cost_of_an_interleaved_document_is_its_operations_nearly(sentences: int, images: int):
    model = tiny_method(LCL)
    cost = document_cost(model, TOKENIZER, model.layout(TOKENIZER, RULES), RULES)
    assert cost is not None
    assert cost.tokens_per_image == TOKENS_PER_IMAGE + 2
    document = Document("d", "", (*[Image(b"", floats=True)] * images, Text(TEXT * sentences)))
    predicted = float(cost.of(np.array([size_of(document)]))[0])
    assert predicted == pytest.approx(flops(model, document), rel=0.25)


def test_a_pair_pays_for_its_text_and_not_for_a_second_image():
    model = tiny_method(CLIP)
    cost = document_cost(model, TOKENIZER, model.layout(TOKENIZER, RULES), RULES)
    assert cost is not None
    assert (cost.image, cost.tokens_per_image) == (0, 0)
    assert cost.byte > 0


def test_documents_of_one_form_have_no_cost():
    model = tiny_method(partial(Classify, classes=("one", "two"), num_heads=2))
    assert document_cost(model, TOKENIZER, model.layout(TOKENIZER, RULES), RULES) is None
