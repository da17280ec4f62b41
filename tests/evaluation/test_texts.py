from __future__ import annotations

import pytest
import torch

from lcl_composer.data.interleave import Interleaved, LayoutRules
from lcl_composer.errors import DataError
from lcl_composer.evaluation.texts import text_batches, text_features
from lcl_composer.methods.clip import CLIP
from tests.models.tiny import RULES, TOKENIZER, tiny_method, tiny_model

TEXTS = ["1 2 3", "4 5", "6 7 8 9 10", "11", "4 5"]


@torch.no_grad()
@pytest.mark.parametrize("method", ["clip", "lcl"])
def test_features_are_in_the_texts_order_however_they_are_cut(method: str) -> None:
    model = (tiny_method(CLIP) if method == "clip" else tiny_model()).eval()
    layout = model.layout(TOKENIZER, RULES)
    whole, cut = (text_features(model, layout, TEXTS, size) for size in (8, 2))
    torch.testing.assert_close(whole, cut)
    torch.testing.assert_close(whole[1], whole[4])
    assert (whole[0] - whole[1]).abs().max() > 1e-3


def test_a_text_without_a_feature_is_named() -> None:
    few = Interleaved(TOKENIZER, LayoutRules(4, 40, min_context_tokens=3))
    with pytest.raises(
        DataError, match=r"text '4 5': has no feature; it is empty, or shorter than data\.min"
    ):
        list(text_batches(few, TEXTS, 8))
    with pytest.raises(DataError, match=r"text '': has no feature"):
        list(text_batches(tiny_model().layout(TOKENIZER, RULES), [""], 8))
    with pytest.raises(DataError, match=r"text ' '.*its text is empty"):
        list(text_batches(tiny_method(CLIP).layout(TOKENIZER, RULES), [" "], 8))


def test_an_lcl_text_ends_where_an_image_would_begin() -> None:
    (batch,) = text_batches(tiny_model().layout(TOKENIZER, RULES), ["3 4"], 8)
    assert batch["tokens"].tolist() == [TOKENIZER.start_of_text, 3, 4, TOKENIZER.start_of_image]
    assert (batch["anchors"].tolist(), batch["read"].tolist()) == ([3], [])
