"""Where long documents are divided."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcl_composer.convert.blocks import Divider
from lcl_composer.data.document import Document, Image, Segment, Text
from lcl_composer.data.interleave import LayoutRules, lay_out
from tests.data.layouts import FIXED, FLOATS, NumberTokenizer, document, rng

#: A sentence of five characters and its full stop.
CHINESE = "\u4e00\u4e8c\u4e09\u56db\u4e94\u3002"


def count(text: str) -> int:
    return len(text.split())


def letters(text: str) -> int:
    return len("".join(text.split()))


def divided(*segments: str | Image, headings=(), repeat=False, count=count) -> list[list[str]]:
    """Divide by 12 tokens, an image taking 4; a fixed image is shown as ``#``, a floating one as ``~``."""
    groups = Divider(12, 4, count, repeat).divide(document(*segments), headings)
    return [
        [s.text if isinstance(s, Text) else "~" if s.floats else "#" for s in segments] for segments in groups
    ]


def words(number: int, first: int = 1) -> str:
    return " ".join(str(i) for i in range(first, first + number))


def test_between_paragraphs_in_the_second_half_of_the_room():
    assert divided(f"{words(5)}\n\n{words(4)}\n\n{words(5)}\n\n{words(3)}") == [
        [f"{words(5)}\n\n{words(4)}"],
        [f"{words(5)}\n\n{words(3)}"],
    ]


def test_before_a_heading_rather_than_later_and_never_behind_one():
    text = f"{words(6)}\n\nHead\n\n{words(4)}\n\n{words(6)}"
    assert divided(text)[0] == [f"{words(6)}\n\nHead\n\n{words(4)}"]
    assert divided(text, headings=["Head"]) == [[words(6)], [f"Head\n\n{words(4)}\n\n{words(6)}"]]
    behind = f"{words(6)}\n\n{words(4)}\n\nHead\n\n{words(6)}"
    assert divided(behind, headings=["Head"])[1] == [f"Head\n\n{words(6)}"]


def test_a_fixed_image_stays_with_the_text_before_it():
    assert divided(words(6), f"{words(2)}\n\n{words(2)}", FIXED, words(6)) == [
        [words(6), words(2)],
        [words(2), "#", words(6)],
    ]


def test_a_floating_image_stays_with_the_text_behind_it():
    assert divided(words(5), words(5), FLOATS, words(3)) == [[words(5), words(5)], ["~", words(3)]]


def test_an_image_is_rather_not_parted_from_its_legend():
    """The text behind an image is no place to divide at while there is a paragraph."""
    assert divided(words(3), f"{words(3)}\n\n1", FIXED, words(2), words(5))[0] == [words(3), words(3)]


def test_more_images_than_fit_are_given_their_text_each_time():
    assert divided(words(5), words(3), *[FIXED] * 5, words(2)) == [
        [words(5)],
        [words(3), "#", "#"],
        [words(3), "#", "#"],
        [words(3), "#", words(2)],
    ]
    assert divided(*[FIXED] * 3, words(3)) == [["#", "#", words(3)], ["#", words(3)]]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A is so. B is it! C is me? D (e.) F it.", ["A is so. B is it!", "C is me? D (e.)", "F it."]),
        ("a bb ccc dd e ff ggg hh i jj kkk", ["a bb ccc dd e ff", "ggg hh i jj kkk"]),
        ("a" * 30, ["a" * 11, "a" * 11, "a" * 8]),
        (CHINESE * 3, [CHINESE * 2, CHINESE]),
    ],
)  # fmt: skip
def test_a_long_paragraph_between_sentences_then_words_then_anywhere(text, parts):
    groups = [segment for group in divided(text, count=letters) for segment in group]
    assert groups == parts


def test_title_and_heading_are_repeated_if_asked():
    text = "Book\n\nPart\n\n1 2 3 4\n\n5 6 7 8\n\n9 10 11\n\n12 13\n\nNext\n\n1 2 3 4 5"
    assert divided(text, headings=["Book", "Part", "Next"], repeat=True) == [
        ["Book\n\nPart\n\n1 2 3 4\n\n5 6 7 8"],
        ["Book\n\nPart\n\n9 10 11\n\n12 13"],
        ["Book\n\nNext\n\n1 2 3 4 5"],
    ]
    long = f"{words(5)}\n\n{words(6)}\n\n1 2"
    assert divided(long, repeat=True) == [
        [f"{words(5)}\n\n{words(6)}"],
        ["1 2"],
    ]  # such a title would take up the room


texts = st.lists(st.integers(1, 30), min_size=1, max_size=4).map(
    lambda lengths: Text("\n\n".join(words(n) for n in lengths))
)
images = st.booleans().map(lambda floats: Image(b"x", floats))
segments = st.lists(texts | images, min_size=1, max_size=12).filter(
    lambda found: any(isinstance(s, Text) for s in found)
)


def flat(segments: tuple[Segment, ...]) -> list[str]:
    return [w for s in segments for w in (s.text.split() if isinstance(s, Text) else ["#"])]


@settings(max_examples=300, deadline=None)
@given(segments, st.integers(14, 60), st.booleans())
def test_all_of_it_reaches_a_loss_and_in_its_order(found, room, repeat):
    whole, rules = Document("d", "test", tuple(found)), LayoutRules(2, room + 2)
    groups = Divider(room, 4, count, repeat).divide(whole, ())
    seen = 0
    for group in groups:
        layout = lay_out(Document("d", "test", group), NumberTokenizer(), rules, rng())
        assert layout.cut_tokens == layout.cut_images == 0
        seen += len(layout.images)
    assert seen == len(whole.images)
    if not repeat:
        together = [word for group in groups for word in flat(group)]
        repeats = len(together) - len(flat(whole.segments))
        assert together == flat(whole.segments) or (repeats > 0 and len(whole.images) > 1)
