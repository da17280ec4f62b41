"""Features of texts and images alone are those of the forward, of every method that contrasts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lcl_composer.errors import ConfigError
from lcl_composer.evaluation.texts import text_batches
from lcl_composer.methods.blip2 import BLIP2
from lcl_composer.methods.clip import CLIP
from lcl_composer.methods.coca import CoCa
from lcl_composer.methods.emu import Emu
from lcl_composer.methods.lcl import LCL
from tests.methods.test_retrieve import FORMS as RETRIEVE_FORMS
from tests.methods.test_retrieve import model_of as retrieve_of
from tests.models.tiny import IMAGE, RULES, TOKENIZER, batch, document, tiny_encoder, tiny_method
from tests.models.tiny import tiny_language_model as text_tower

TEXTS = ["1 2 3", "4 5", "6 7 8 9 10"]
METHODS: dict[str, Any] = {
    **{f"retrieve {form}": lambda form=form: retrieve_of(form) for form in RETRIEVE_FORMS},
    "blip2": partial(BLIP2, num_queries=3, query_layers=1, query_heads=2),
    "clip": CLIP,
    "clip without a pooler": lambda: CLIP(tiny_encoder(), text_tower()),
    "coca": partial(CoCa, num_queries=3),
    "lcl": LCL,
}


class Unread(nn.Module):
    """An encoder that must not be asked."""

    def forward(self, *_: Any) -> Any:
        raise AssertionError("an image was read")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@torch.no_grad()
def test_both_sides_alone_are_those_of_the_forward(method: Any) -> None:
    model = tiny_method(method).eval()
    layout = model.layout(TOKENIZER, RULES)
    rows = batch([document(text, IMAGE, name=text) for text in TEXTS], layout)
    outputs = model(rows)
    sides = [outputs[name] for name in model.contrast_term.reads]
    torch.testing.assert_close(model.image_features(rows["pixel_values"]), sides[0])
    torch.testing.assert_close(model.text_features(rows), sides[1])
    model.encoder = Unread()
    (alone,) = text_batches(layout, TEXTS, 8)
    torch.testing.assert_close(model.text_features(alone), sides[1])


def test_a_method_without_a_text_side_says_so() -> None:
    model = tiny_method(Emu)
    rows = batch([document("1 2", IMAGE)])
    with pytest.raises(ConfigError, match="the method Emu contrasts images with no text"):
        model.text_features(rows)
    model.pooler = None
    with pytest.raises(ConfigError, match="the method Emu has no feature of an image as a whole"):
        model.image_features(rows["pixel_values"])
