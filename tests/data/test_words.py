"""Words of texts in many scripts, counted by hand with the rules of UAX #29."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.words import count_words, document_words, has_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("Of birds: a red one (it sits).", 7),
        ("don't, U.S.A., 3.14 and 1,000.5", 5),
        ("state-of-the-art", 4),
        ("… — ! 🐟 \n •", 0),
        ("e\u0301te\u0301 naïve", 2),  # accents as characters of their own
        ("渔船每天早上回家。", 8),
        ("カメラ", 1),
        ("のはら、カメラ", 4),
        ("ภาษาไทย", 7),
        ("한국어 단어", 2),
        ("हिन्दी में", 2),
        ("می\u200cخواهم", 1),  # a zero-width non-joiner inside a Persian word
        ("__init__ and _x", 3),
    ],
)
def test_words_of_a_text(text, words):
    assert count_words(text) == words


@given(st.text(alphabet="ab1_2.':,; -x\n\"\x1f", max_size=12))
def test_ascii_is_counted_by_the_same_rules(text):
    """A letter beyond ASCII after a blank is a word of its own and takes the general way."""
    assert count_words(text) == count_words(text + " é") - 1


def test_words_of_a_document_are_those_of_its_texts():
    document = Document("d", "s", (Text("two words"), Image(b"x"), Text("鱼")))
    assert document_words(document) == 3


@pytest.mark.parametrize(("least", "has"), [(0, True), (1, True), (5, True), (6, False)])
def test_at_least_so_many_words_in_all_texts_together(least, has):
    document = Document("d", "here", (Text("one two"), Image(b"x"), Text("three, four. five")))
    assert has_words(document, least) is has
