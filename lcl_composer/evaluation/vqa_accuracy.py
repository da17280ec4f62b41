"""Answers as the VQA challenge compares them, and how many people agree with one."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: People who must say the same for an answer to count in full.
AGREEING = 3

_PUNCTUATION = ";:/'[]\"()=+\\_><@`,?"
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_DIGITS)}}
_ARTICLES = frozenset(("a", "an", "the"))
_CONTRACTIONS = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd
he's how'd how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd
something'll that's there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't
what'll what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're
why's won't would've wouldn't y'all you'd you'll you're you've"""
_WITH_APOSTROPHE = {word.replace("'", ""): word for word in _CONTRACTIONS.split()}


def normalised(answer: str) -> str:
    """An answer as the official evaluation compares it (github.com/GT-Vision-Lab/VQA, ``vqaEval.py``).

    Lower case; punctuation away, or a blank in its place between two characters; full stops away unless a
    number follows; numbers up to ten as digits; articles away; contractions with their apostrophe.
    """
    text = " ".join(answer.split())
    drops_all = re.search(r"\d,\d", text) is not None
    written = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        written = written.replace(mark, "" if beside_blank or drops_all else " ")
    written = re.sub(r"\.(?!\d)", "", written)
    words = (_NUMBERS.get(word, word) for word in written.lower().split())
    return " ".join(_WITH_APOSTROPHE.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """How well an answer agrees with those of several people (VQA, arXiv 1505.00468, section 3).

    ``min(those who say it / 3, 1)``, averaged over the sets of all people but one. Both sides are normalised;
    the official code leaves people's answers as they are where all are the same.

    Args:
        answer: What the model says.
        answers: What people say, one each, ten as a rule; an answer of fewer than four cannot reach 1.
    """
    said, others = normalised(answer), [normalised(other) for other in answers]
    agreeing = others.count(said)
    # A set without one of those who agree has one fewer of them.
    shares = [min((agreeing - (other == said)) / AGREEING, 1.0) for other in others]
    return sum(shares) / len(shares) if shares else 0.0


def exact_match(answer: str, answers: Sequence[str]) -> bool:
    """Whether somebody says the same, once normalised."""
    return normalised(answer) in map(normalised, answers)
