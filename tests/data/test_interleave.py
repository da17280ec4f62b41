from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lcl_composer.data.batch import IGNORE
from lcl_composer.data.captioned import Captioned
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.interleave import (
    Interleaved,
    Layout,
    LayoutRules,
    Readers,
    TokenLayout,
    lay_out,
    most_images,
)
from lcl_composer.data.labelled import Labelled
from lcl_composer.data.masked_text import MaskedText
from lcl_composer.data.paired import Paired
from lcl_composer.data.tagged import Tagged
from lcl_composer.errors import ConfigError
from lcl_composer.inspect.view import Viewer
from tests.data.layouts import FIXED, FLOATS, NumberTokenizer, document, rng

PARITY = Path(__file__).parents[3] / "shared" / "parity" / "lcl_tiny"
TOKENIZER = NumberTokenizer()
SOT, EOT, SLOT, SOI, EOI = 507, 508, 509, 510, 511
RULES = LayoutRules(tokens_per_image=2, max_tokens=20)


def laid(doc: Document, rules: LayoutRules = RULES, seed: int = 0) -> TokenLayout:
    return lay_out(doc, TOKENIZER, rules, rng(seed))


def test_pair_with_text_first_ends_at_start_of_image():
    layout = laid(document("1 2", FIXED))
    assert layout.tokens.tolist() == [SOT, 1, 2, SOI]
    assert layout.targets.tolist() == [1, 2, SOI, IGNORE]
    assert layout.images.tolist() == [0]
    assert layout.image_starts.tolist() == [-1]
    assert layout.anchors.tolist() == [3]


def test_pair_with_image_first():
    layout = laid(document(FIXED, "1 2"))
    assert layout.tokens.tolist() == [SOI, SLOT, SLOT, EOI, 1, 2]
    assert layout.targets.tolist() == [IGNORE, IGNORE, IGNORE, 1, 2, EOT]
    assert layout.image_starts.tolist() == [1]
    assert layout.anchors.tolist() == [-1]


def test_interleaved_document():
    layout = laid(document("1 2", FIXED, FIXED, "3"))
    assert layout.tokens.tolist() == [SOT, 1, 2, SOI, SLOT, SLOT, EOI, SOI, SLOT, SLOT, EOI, 3]
    expected = [1, 2, SOI, IGNORE, IGNORE, IGNORE, SOI, IGNORE, IGNORE, IGNORE, 3, EOT]
    assert layout.targets.tolist() == expected
    assert layout.anchors.tolist() == [3, 7]
    assert layout.image_starts.tolist() == [4, 8]


def test_text_only_document():
    layout = laid(document("1", "2"))
    assert layout.tokens.tolist() == [SOT, 1, 2]
    assert layout.targets.tolist() == [1, 2, EOT]
    assert len(layout.images) == 0


@pytest.mark.parametrize("segments", [(), ("",), (FIXED,), ("", FIXED, " ")])
def test_documents_no_loss_sees_are_empty(segments: tuple[str | Image, ...]):
    layout = laid(document(*segments))
    assert len(layout.tokens) == len(layout.targets) == len(layout.images) == 0


def test_second_of_two_leading_images_is_not_encoded_without_context():
    layout = laid(document(FIXED, FIXED))
    assert layout.images.tolist() == [0]
    assert layout.tokens.tolist() == [SOI, SLOT, SLOT, EOI]
    anchored = laid(document(FIXED, FIXED), LayoutRules(2, 20, min_context_tokens=0))
    assert anchored.images.tolist() == [0, 1]
    assert anchored.anchors.tolist() == [-1, 4]


def test_min_context_tokens_counts_real_text():
    rules = LayoutRules(2, 30, min_context_tokens=3)
    assert laid(document("1 2", FIXED, "3", FIXED), rules).anchors.tolist() == [-1, 8]


def test_special_tokens_spelled_out_in_a_text_are_dropped():
    layout = laid(document(f"1 {SLOT} {SOI} 2 {EOT}", FIXED))
    assert layout.tokens.tolist() == [SOT, 1, 2, SOI]


def test_text_of_a_pair_is_shortened_so_that_the_image_stays():
    words = " ".join(str(i) for i in range(1, 31))
    before, after = laid(document(words, FIXED)), laid(document(FIXED, words))
    kept = RULES.max_tokens - RULES.tokens_per_image - 4
    assert before.tokens.tolist() == [SOT, *range(1, kept + 1), SOI]
    assert after.targets.tolist() == [IGNORE] * 3 + [*range(1, kept + 1), EOT]
    assert before.cut_tokens == after.cut_tokens == 30 - kept
    assert before.cut_images == 0


def test_long_document_is_cut_inside_a_text_and_before_an_image_that_does_not_fit():
    inside = laid(document(" ".join(["1"] * 30), FIXED, "2"))
    assert len(inside.tokens) == RULES.max_tokens - 1  # the last token is a target only
    assert (inside.cut_tokens, inside.cut_images) == (30 - 19 + 1, 1)
    at_image = laid(document(" ".join(["1"] * 17), FIXED, "2 3"))
    assert (at_image.cut_tokens, at_image.cut_images) == (2, 1)
    assert EOT not in at_image.targets
    assert SOI not in at_image.targets


def test_floating_image_follows_its_probability():
    always = LayoutRules(2, 20, image_first_probability=1.0)
    never = LayoutRules(2, 20, image_first_probability=0.0)
    doc = document("9", FLOATS, "1 2")
    assert laid(doc, always).tokens.tolist() == [SOT, 9, SOI, SLOT, SLOT, EOI, 1, 2]
    assert laid(doc, never).tokens.tolist() == [SOT, 9, 1, 2, SOI]
    first = [laid(document(FLOATS, "1"), seed=seed).tokens[0] == SOI for seed in range(400)]
    assert 150 < sum(first) < 250


def test_images_index_follows_the_order_of_the_tokens():
    never = LayoutRules(2, 40, image_first_probability=0.0)
    layout = laid(document(FLOATS, FIXED, "1", FIXED, "2"), never)
    assert layout.images.tolist() == [1, 0, 2]


def test_floating_image_without_text_stays():
    never = LayoutRules(2, 20, image_first_probability=0.0)
    assert laid(document("1", FLOATS), never).anchors.tolist() == [2]


@pytest.mark.parametrize(
    "settings", [{"image_first_probability": 1.5}, {"min_context_tokens": -1}, {"tokens_per_image": 0}]
)
def test_bad_rules_are_refused(settings: dict[str, float]):
    with pytest.raises(ConfigError, match=r"probability|negative|0 tokens"):
        LayoutRules(**{"tokens_per_image": 2, "max_tokens": 20, **settings})  # pyright: ignore


def test_a_context_must_hold_what_the_layout_puts_into_it() -> None:
    """Layouts whose images take no slots ask for less: ViT-B/16 with CLIP's 77 tokens is CLIP's own."""
    Paired(TOKENIZER, LayoutRules(196, 77))
    Tagged(TOKENIZER, LayoutRules(196, 77))
    for layout in (
        Interleaved,
        partial(MaskedText, ratio=0.5, text_ratio=0.5),
        partial(Viewer, seed=0, epoch=0),
    ):
        with pytest.raises(ConfigError, match=r"77 cannot hold an image of 196 tokens and a text; .* 201 "):
            layout(TOKENIZER, LayoutRules(196, 77))
    with pytest.raises(ConfigError, match="at least 3"):
        Tagged(TOKENIZER, LayoutRules(196, 2))


texts = st.lists(st.integers(1, 506), max_size=8).map(lambda ids: Text(" ".join(map(str, ids))))
images = st.builds(Image, st.just(b"x"), st.booleans())
documents = st.lists(texts | images, max_size=9).map(lambda s: Document("d", "test", tuple(s)))
all_rules = st.builds(LayoutRules, st.integers(1, 4), st.integers(9, 40), st.floats(0, 1), st.integers(0, 4))


def check_structure(layout: TokenLayout, rules: LayoutRules) -> None:
    """Image slots stand in whole runs between their marks, where ``image_starts`` says."""
    slots = set()
    for start in layout.image_starts[layout.image_starts >= 0]:
        run = layout.tokens[start : start + rules.tokens_per_image]
        assert run.tolist() == [SLOT] * rules.tokens_per_image
        assert layout.tokens[start - 1] == SOI
        assert layout.tokens[start + rules.tokens_per_image] == EOI
        slots.update(range(start, start + rules.tokens_per_image))
    assert slots == set(np.flatnonzero(layout.tokens == SLOT))
    assert (layout.tokens[layout.anchors[layout.anchors >= 0]] == SOI).all()


@settings(max_examples=300, deadline=None)
@given(documents, all_rules, st.integers(0, 99))
def test_layout_properties(doc: Document, rules: LayoutRules, seed: int):
    layout = lay_out(doc, TOKENIZER, rules, rng(seed))
    again = lay_out(doc, TOKENIZER, rules, rng(seed))
    for name in TokenLayout.__slots__:
        np.testing.assert_array_equal(getattr(layout, name), getattr(again, name))
    check_structure(layout, rules)
    assert len(layout.tokens) == len(layout.targets) <= rules.max_tokens
    inner = layout.targets[:-1] != IGNORE
    assert (layout.targets[:-1][inner] == layout.tokens[1:][inner]).all()
    assert not np.isin(layout.targets, [SLOT, EOI, SOT]).any()
    assert not inner[np.isin(layout.tokens[1:], [SLOT, EOI])].any()
    assert inner[~np.isin(layout.tokens[1:], [SLOT, EOI])].all()  # nothing the loss could see is ignored
    if len(layout.tokens):  # no dead work at the end
        assert layout.targets[-1] != IGNORE or len(layout.tokens) - 1 in layout.anchors
    assert ((layout.image_starts >= 0) | (layout.anchors >= 0)).all()
    assert 0 not in layout.anchors


@settings(max_examples=200, deadline=None)
@given(documents, all_rules, st.integers(0, 99))
def test_nothing_is_lost(doc: Document, rules: LayoutRules, seed: int):
    layout = lay_out(doc, TOKENIZER, rules, rng(seed))
    total = sum(len(s.text.split()) for s in doc.segments if isinstance(s, Text))
    seen = ((layout.targets < SOT) & (layout.targets != IGNORE)).sum()
    assert seen + layout.cut_tokens == total
    assert len(layout.images) + layout.cut_images <= len(doc.images)
    assert len(set(layout.images.tolist())) == len(layout.images)


def to_document(row: list[int], name: str) -> Document:
    """Turn a released row of ids back into text and images."""
    segments: list[Text | Image] = []
    words: list[str] = []
    for token in [*row, SOI]:
        if token == SOI:
            segments += [Text(" ".join(words)), FIXED]
            words = []
        elif token not in (SOT, EOT, SLOT, EOI, 0):
            words.append(str(token))
    return Document(name, "parity", tuple(s for s in segments[:-1] if s != Text("")))


@pytest.mark.skipif(not PARITY.is_dir(), reason="the released cases are not beside this clone")
@pytest.mark.parametrize("case", ["paired", "interleaved"])
def test_layout_gives_the_released_labels(case: str):
    facts = json.loads((PARITY / "facts.json").read_text())
    tensors = load_file(PARITY / "cases.safetensors")
    rules = LayoutRules(facts["tokens_per_image"], 96)
    labels, anchored = [], 0
    for i, row in enumerate(tensors[f"{case}.input_ids"].tolist()):
        layout = laid(to_document(row, str(i)), rules)
        assert layout.tokens.tolist() == row[: len(layout.tokens)]
        labels += layout.targets[layout.targets != IGNORE].tolist()
        anchored += int((layout.anchors >= 0).sum())
    assert labels == tensors[f"{case}.out.labels"].tolist()
    assert anchored == len(tensors[f"{case}.out.image_features"])


#: Up to seven images and words in any order.
ORDERS = [document(*order) for n in range(8) for order in product((FIXED, "1"), repeat=n)]
INTERLEAVED = [
    partial(Interleaved, readers=Readers(*which))
    for which in [(1, 1, 0), (0, 1, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)]
]


@pytest.mark.parametrize("max_tokens", range(6, 14))
@pytest.mark.parametrize("context", [0, 1, 2])
@pytest.mark.parametrize(
    "made",
    [*INTERLEAVED, partial(MaskedText, ratio=0.5, text_ratio=0.5)],
    ids=lambda made: str(made.keywords),
)
def test_no_document_has_more_images_than_the_full_one(
    made: Callable[..., Layout], context: int, max_tokens: int
) -> None:
    layout = made(TOKENIZER, LayoutRules(1, max_tokens, min_context_tokens=context))
    assert most_images(layout) == max(len(layout(order, rng()).images) for order in ORDERS)


@pytest.mark.parametrize("max_tokens", range(3, 7))
def test_nor_where_an_image_is_one_token(max_tokens: int) -> None:
    layout = Tagged(TOKENIZER, LayoutRules(1, max_tokens))
    assert most_images(layout) == max(len(layout(order, rng()).images) for order in ORDERS) == max_tokens - 1


@pytest.mark.parametrize(
    ("layout", "tokens"),
    [
        (Paired(TOKENIZER, RULES), 20),
        (Paired(TOKENIZER, RULES, predicts=True, slots=3), 20),
        (Captioned(TOKENIZER, RULES), 19),  # of a text that is cut the last token predicts nothing
        (Captioned(TOKENIZER, RULES, "{} 5"), 19),
        (Labelled(("3", "4")), 1),
    ],
    ids=("text", "slots", "caption", "prompt", "label"),
)
def test_of_pairs_it_has_one_and_fills_the_context(layout: Layout, tokens: int) -> None:
    assert most_images(layout) == 1
    assert len(layout(layout.full_document(), rng()).tokens) == tokens


def test_a_layout_of_a_drop_in_need_not_say() -> None:
    assert most_images(laid) is None  # type: ignore[arg-type]
