"""What is predicted of a caption or an answer, which text is drawn, and what is refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lcl_composer.data.batch import IGNORE
from lcl_composer.data.captioned import Captioned
from lcl_composer.data.interleave import LayoutRules
from lcl_composer.errors import ConfigError, DataError
from tests.data.layouts import FIXED, NumberTokenizer, document, rng

RULES = LayoutRules(tokens_per_image=2, max_tokens=8)


class Numbers(NumberTokenizer):
    """Also the words of a prompt, by their lengths."""

    def encode(self, text: str) -> list[int]:
        return [int(word) if word.isdigit() else len(word) for word in text.split()]


TOKENIZER = Numbers()
START, END, SLOT = TOKENIZER.start_of_text, TOKENIZER.end_of_text, TOKENIZER.image_placeholder


def lists(layout) -> tuple[list[int], list[int]]:
    return layout.tokens.tolist(), layout.targets.tolist()


def test_a_caption_and_its_end_are_predicted() -> None:
    layout = Captioned(TOKENIZER, RULES)(document(FIXED, "11 12"), rng())
    assert lists(layout) == ([SLOT, SLOT, START, 11, 12], [IGNORE, IGNORE, 11, 12, END])
    assert (layout.images.tolist(), layout.image_starts.tolist(), layout.anchors.tolist()) == ([0], [0], [-1])


def test_a_prompt_is_not_predicted() -> None:
    layout = Captioned(TOKENIZER, RULES, prompt="a photo")(document("11", FIXED), rng())
    assert lists(layout) == ([SLOT, SLOT, START, 1, 5, 11], [IGNORE] * 4 + [11, END])


def test_a_question_stands_in_the_prompt_and_an_answer_is_predicted() -> None:
    layout = Captioned(TOKENIZER, RULES, prompt="ask {} say")(document(FIXED, "11", "12"), rng())
    assert lists(layout) == ([SLOT, SLOT, START, 3, 11, 3, 12], [IGNORE] * 5 + [12, END])


def test_a_caption_is_drawn_and_answers_as_often_as_they_were_given() -> None:
    caption, answer = Captioned(TOKENIZER, RULES), Captioned(TOKENIZER, RULES, prompt="{}")
    captions = Counter(caption(document(FIXED, "11", "12", " "), rng(n)).tokens[3] for n in range(300))
    assert set(captions) == {11, 12}
    assert 100 < captions[11] < 200
    answers = Counter(answer(document(FIXED, "9", "11", "12", "12"), rng(n)).tokens[4] for n in range(300))
    assert set(answers) == {11, 12}
    assert answers[12] > 1.5 * answers[11]


def test_a_long_caption_is_cut_and_its_end_not_predicted() -> None:
    layout = Captioned(TOKENIZER, RULES)(document(FIXED, "1 2 3 4 5 6 7"), rng())
    assert lists(layout) == ([SLOT, SLOT, START, 1, 2, 3, 4], [IGNORE, IGNORE, 1, 2, 3, 4, 5])
    assert layout.cut_tokens == 2
    fits = Captioned(TOKENIZER, RULES)(document(FIXED, "1 2 3 4 5"), rng())
    assert (len(fits.tokens), fits.targets[-1], fits.cut_tokens) == (8, END, 0)


class Blanks(NumberTokenizer):
    """As GPT-2's: a word behind a blank has another id; and "ab" is one token."""

    def encode(self, text: str) -> list[int]:
        pieces = text.replace(" ", " _").replace("a b", "ab").split()
        return [sum(map(ord, piece)) % 500 for piece in pieces]


def test_a_text_has_the_ids_that_it_has_behind_its_prompt() -> None:
    tokenizer = Blanks()
    layout = Captioned(tokenizer, RULES, prompt="x")(document(FIXED, "y"), rng())
    apart = tokenizer.encode("x") + tokenizer.encode("y")
    assert layout.tokens.tolist()[3:] == tokenizer.encode("x y") != apart


@pytest.mark.parametrize(
    ("rows", "prompt", "message"),
    [
        (document("1"), "", "0 images and 1 texts, not one image and one caption or more, as lcl convert"),
        (document(FIXED, FIXED, "1"), "", "2 images and 1 texts"),
        (document(FIXED), "", "1 images and 0 texts"),
        (document(FIXED, "  "), "", "1 images and 0 texts"),
        (document(FIXED, "1"), "{}", "not one image and a question and its answers, as"),
        (document(FIXED, str(START)), "", "the text '507' is empty"),
        (document(FIXED, "1 2 3 4 5 6", "7"), "{}", "its prompt has 6 tokens, 2 too many"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_documents_are_refused_in_a_line(rows, prompt: str, message: str) -> None:
    with pytest.raises(DataError, match=message.replace("(", r"\(")) as error:
        Captioned(TOKENIZER, RULES, prompt)(rows, np.random.default_rng(0))
    assert "\n" not in str(error.value)


def test_a_context_too_short_is_refused() -> None:
    with pytest.raises(ConfigError, match="set it to at least 4"):
        Captioned(TOKENIZER, LayoutRules(tokens_per_image=2, max_tokens=3))
