"""Which text of several an image is paired with."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.interleave import LayoutRules
from lcl_composer.data.paired import Paired
from lcl_composer.data.rng import sample_rng
from lcl_composer.errors import DataError
from tests.data.layouts import NumberTokenizer

LAYOUT = Paired(NumberTokenizer(), LayoutRules(4, 16))


def captioned(*texts: str) -> Document:
    return Document("d", "", (Image(b""), *map(Text, texts)))


def words(document: Document, rng: np.random.Generator) -> list[int]:
    return LAYOUT(document, rng).tokens[1:-1].tolist()


def test_each_caption_is_drawn_about_as_often_and_one_without_a_token_never() -> None:
    document = captioned("1 2", "", "3", "4 5 6", "  ")
    drawn = Counter(tuple(words(document, sample_rng(17, epoch, "d", "layout"))) for epoch in range(300))
    assert drawn.keys() == {(1, 2), (3,), (4, 5, 6)}
    assert min(drawn.values()) > 70


def test_the_draw_is_that_of_seed_epoch_and_document() -> None:
    document = captioned(*map(str, range(1, 8)))
    drawn = [words(document, sample_rng(17, 3, "d", "layout")) for _ in range(2)]
    assert drawn[0] == drawn[1]
    others = {tuple(words(document, sample_rng(17, 3, name, "layout"))) for name in "abcdefgh"}
    assert len(others) > 2


def test_a_single_text_leaves_the_seeds_as_they_were() -> None:
    seed = LAYOUT(captioned("1 2"), np.random.default_rng(5)).seeds
    bounds = np.iinfo(np.int64)
    assert seed.tolist() == np.random.default_rng(5).integers(bounds.min, bounds.max, 1).tolist()


def test_captions_without_a_token_are_nothing_to_learn_from() -> None:
    with pytest.raises(DataError, match="nothing to learn from, its text is empty"):
        words(captioned("", " "), np.random.default_rng(0))
    with pytest.raises(
        DataError, match=r"1 images and 0 texts, not one of each; .*lcl convert captions, coco"
    ):
        words(captioned(), np.random.default_rng(0))
