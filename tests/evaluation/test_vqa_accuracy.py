"""VQA accuracy by its definition, and answers normalised as the official code does it."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcl_composer.evaluation.vqa_accuracy import exact_match, normalised, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("The  dog.", "dog"),
        ("a red\tcar\n", "red car"),
        ("Two", "2"),
        ("none", "0"),
        ("ten dogs", "10 dogs"),
        ("dont know", "don't know"),
        ("its", "its"),
        ("2.5", "2.5"),
        ("2. ", "2"),
        ("1,000", "1000"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("yes!", "yes!"),
        ("t-shirt", "t-shirt"),
        ("don't", "don t"),  # as the official code has it: a blank for the apostrophe
        ("theyre", "they're"),
        ("", ""),
    ],
)
def test_answers_are_normalised(answer: str, expected: str) -> None:
    assert normalised(answer) == expected


@pytest.mark.parametrize(
    ("agreeing", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_accuracy_of_ten_answers(agreeing: int, accuracy: float) -> None:
    answers = ["The cat"] * agreeing + [f"other {n}" for n in range(10 - agreeing)]
    assert vqa_accuracy("cat", answers) == pytest.approx(accuracy)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8))
def test_accuracy_is_the_mean_over_all_sets_but_one(answers: list[str]) -> None:
    answers = [f"x{answer}" for answer in answers]
    sets = list(combinations(answers, len(answers) - 1))
    expected = sum(min(left.count("xa") / 3, 1) for left in sets) / len(sets)
    assert vqa_accuracy("xa", answers) == pytest.approx(expected)


def test_few_answers_cannot_be_reached_in_full() -> None:
    assert vqa_accuracy("a cat", ["cat"]) == 0.0
    assert vqa_accuracy("a cat", ["cat"] * 3) == pytest.approx(2 / 3)
    assert vqa_accuracy("cat", []) == 0.0


def test_a_match_is_with_anyone() -> None:
    assert exact_match("The Dog.", ["cat", "dog"])
    assert not exact_match("dogs", ["cat", "dog"])
    assert not exact_match("", ["cat"])
