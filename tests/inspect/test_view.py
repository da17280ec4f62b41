"""Documents as the model will see them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.interleave import LayoutRules
from lcl_composer.data.tokenizer import CLIPTokenizer
from lcl_composer.inspect.view import ImageRow, TextRow, Viewer, pieces_of
from tests.data.layouts import NumberTokenizer
from tests.inspect.conftest import documents, viewer

VIEWS = {document.id[:9]: viewer().view(document) for document in documents()}


def outline(view) -> list:
    """Rows as ``text use: words`` and ``state number``."""
    return [
        f"{row.state} {row.pair or ''}".strip() if isinstance(row, ImageRow) else row.use for row in view.rows
    ]


def counts(view) -> tuple[int, int, int]:
    """Tokens run, predicted and cut, added up from the pieces."""
    pieces = [piece for row in view.rows for piece in row.pieces]
    cut = [piece for row in view.cut for piece in row.pieces]
    run = sum(p.tokens for p in pieces if p.run)
    return run, sum(p.tokens for p in pieces if p.predicted), sum(p.tokens for p in cut)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("plain", ["context", "pair 1", "context", "pair 2", "target"]),
        ("trailing", ["context", "pair 1"]),
        ("leading", ["unanchored", "target"]),
        ("cut", ["context", "pair 1", "target"]),
        ("imageless", ["target"]),
        ("textless", ["unused"]),
    ],
)
def test_rows(name, rows):
    assert outline(VIEWS[name]) == rows


def test_reasons():
    assert VIEWS["plain"].images[0].why == ""
    assert VIEWS["trailing"].images[0].why == "the language model does not read it: no text follows"
    assert VIEWS["leading"].images[0].why == "opens the document"
    assert VIEWS["textless"].images[0].why == "opens the document, and no text follows"
    little = viewer(rules=LayoutRules(4, 40, min_context_tokens=9)).view(documents()[0])
    assert little.images[0].why == "3 text tokens before it, 9 needed"
    assert little.images[0].state == "unanchored"


def test_what_is_cut_is_shown_in_order():
    view = VIEWS["cut"]
    text, image, last = view.cut
    assert "".join(p.text for p in text.pieces).split()[-2:] == ["nine", "ten"]
    assert (image.image, image.state) == (1, "cut")
    assert [p.text.strip() for p in last.pieces] == ["last"]
    kept = "".join(p.text for row in view.rows for p in row.pieces if not p.mark)
    assert kept.split() + "".join(p.text for p in text.pieces).split() == ["first", *(_ten() * 4)]


def _ten() -> list[str]:
    return ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def test_a_pair_loses_text_on_either_side():
    for epoch in range(8):  # the image floats to both sides
        view = viewer(epoch).view(documents()[4])
        assert view.layout.cut_tokens == 40 - (40 - 4 - 4)
        assert counts(view)[2] == view.layout.cut_tokens
        assert view.text_tokens == 40


@given(
    st.lists(st.one_of(st.integers(0, 9), st.sampled_from(["fixed", "floats"])), max_size=9),
    st.integers(7, 40),
    st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_pieces_add_up_to_the_layout(parts, max_tokens, min_context):
    """Whatever the document: tokens run, predicted and cut, and every image once."""
    segments = tuple(
        Text(" ".join(map(str, range(1, part + 1))))
        if isinstance(part, int)
        else Image(b"x", part == "floats")
        for part in parts
    )
    look = Viewer(NumberTokenizer(), LayoutRules(2, max_tokens, 0.5, min_context), 17, 0)
    view = look.view(Document("d", "here", segments))
    layout = view.layout
    assert counts(view) == (len(layout.tokens), view.targets, layout.cut_tokens)
    assert sorted(row.image for row in view.images) == list(range(len(view.document.images)))
    assert sum(row.state == "cut" for row in view.images) == layout.cut_images
    assert sum(row.pair is not None for row in view.images) == int((layout.anchors >= 0).sum())
    assert view.text_tokens == sum(part for part in parts if isinstance(part, int))


@given(st.lists(st.integers(0, 6), min_size=2, max_size=6), st.data())
@settings(max_examples=50, deadline=None)
def test_context_is_what_stands_before_the_last_anchor(texts, data):
    segments = []
    for count in texts:
        segments += [Text(" ".join(["5"] * count)), Image(b"x")]
    view = Viewer(NumberTokenizer(), LayoutRules(2, 200), 17, 0).view(Document("d", "here", tuple(segments)))
    last = max(view.layout.anchors.tolist(), default=-1)
    shown = sum(
        p.tokens
        for row in view.rows
        if isinstance(row, TextRow) and row.use == "context"
        for p in row.pieces
        if not p.mark
    )
    assert shown == int(np.sum(view.layout.tokens[: max(last, 0)] == 5))


def test_characters_of_several_tokens_stay_whole():
    tokenizer = CLIPTokenizer()
    ids = tokenizer.encode("café 猫 \U0001f408 naïve")
    pieces = list(pieces_of(ids, tokenizer))
    assert sum(p.tokens for p in pieces) == len(ids)
    assert "".join(p.text for p in pieces).split() == ["café", "猫", "\U0001f408", "naïve"]
    assert all("�" not in p.text for p in pieces)
