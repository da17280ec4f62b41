from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from lcl_composer.data.collate import split_batch
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.interleave import LayoutRules, TokenLayout
from lcl_composer.data.tagged import Tagged
from tests.data.layouts import FIXED, FLOATS, NumberTokenizer, document, rng
from tests.models.tiny import RULES, TOKENIZER, batch

NUMBERS = NumberTokenizer(first_special=100)
TEXT, END, TAG = NUMBERS.start_of_text, NUMBERS.end_of_text, NUMBERS.start_of_image


def lay_out(*segments: str | Image, max_tokens: int = 40, seed: int = 0) -> TokenLayout:
    return Tagged(NUMBERS, LayoutRules(1, max_tokens))(document(*segments), rng(seed))


def test_an_image_is_one_token_and_each_position_predicts_the_next() -> None:
    layout = lay_out("3 4", FIXED, FIXED, "5")
    assert layout.tokens.tolist() == [TEXT, 3, 4, TAG, TAG, 5]
    assert layout.targets.tolist() == [3, 4, TAG, TAG, 5, END]
    assert layout.images.tolist() == [0, 1]
    assert layout.image_starts.tolist() == [3, 4]
    assert layout.anchors.tolist() == [-1, -1]


def test_an_image_at_the_start_has_no_start_of_text_before_it() -> None:
    assert lay_out(FIXED, "5").tokens.tolist() == [TAG, 5]


def test_an_image_that_no_token_reads_is_left_out() -> None:
    layout = lay_out("3", FIXED, "4", FIXED)
    assert layout.tokens.tolist() == [TEXT, 3, TAG, 4]
    assert layout.targets.tolist() == [3, TAG, 4, TAG]
    assert layout.images.tolist() == [0]
    assert len(lay_out(FIXED).tokens) == len(lay_out(FIXED).images) == 0


def test_a_floating_image_goes_to_the_side_that_is_drawn() -> None:
    drawn = [lay_out(FLOATS, "5", seed=seed).tokens.tolist() for seed in range(20)]
    assert sorted(set(map(tuple, drawn))) == [(TEXT, 5), (TAG, 5)]


@pytest.mark.parametrize(
    ("max_tokens", "inputs", "cut_tokens", "cut_images"),
    [(6, 5, 1, 1), (7, 6, 0, 1), (8, 7, 0, 0), (9, 7, 0, 0)],
)
def test_what_is_beyond_the_context_is_counted(
    max_tokens: int, inputs: int, cut_tokens: int, cut_images: int
) -> None:
    layout = lay_out("1 2", FIXED, "3 4 5", FIXED, max_tokens=max_tokens)
    assert len(layout.tokens) == inputs
    assert (layout.cut_tokens, layout.cut_images) == (cut_tokens, cut_images)


segments = st.lists(
    st.one_of(
        st.just(FIXED), st.lists(st.integers(1, 58), min_size=1).map(lambda n: Text(" ".join(map(str, n))))
    ),
    min_size=1,
    max_size=6,
)


@given(segments, st.integers(6, 30))
def test_nothing_is_lost(parts: list[Image | Text], max_tokens: int) -> None:
    row = Document("d", "test", tuple(parts))
    layout = Tagged(NUMBERS, LayoutRules(1, max_tokens))(row, rng())
    assert len(layout.tokens) == len(layout.targets) < max_tokens
    whole = [*layout.tokens[:1].tolist(), *layout.targets.tolist()]  # the input, and what it predicts last
    texts = [n for part in parts if isinstance(part, Text) for n in map(int, part.text.split())]
    kept = sum(token < NUMBERS.start_of_text for token in whole)
    if len(layout.tokens):
        assert kept + layout.cut_tokens == len(texts)
        assert [t for t in whole if t < NUMBERS.start_of_text] == texts[:kept]
        assert whole.count(TAG) + layout.cut_images == len(row.images)
    assert all(layout.tokens[layout.image_starts] == TAG)


def test_a_batch_says_how_far_each_image_is_read() -> None:
    rows = batch(
        [
            document("1 2", name="text"),
            document("1", FIXED, "2 3", FIXED, "4", name="two"),
            document(FIXED, FIXED, "5", name="leading"),
        ],
        Tagged(TOKENIZER, RULES),
    )
    assert rows["spans"] == [3, 2, 1, 2]
    parts = split_batch(rows, 1)
    assert [part["spans"] for part in parts] == [[], [3, 2], [1, 2]]
