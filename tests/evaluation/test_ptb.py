"""Words against those of Stanford's tokenizer, whose output on hard captions lies beside this file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lcl_composer.evaluation.caption_scores import has_java, to_words
from lcl_composer.evaluation.ptb import ptb_words
from lcl_composer.synthetic.shapes import ShapesGenerator

CASES = json.loads((Path(__file__).parent / "ptb_words.json").read_text(encoding="utf-8"))


def test_hard_captions_have_the_words_of_stanfords_tokenizer() -> None:
    found = ptb_words([text for text, _ in CASES])
    assert len(CASES) > 400
    differing = [text for (text, words), ours in zip(CASES, found, strict=True) if " ".join(ours) != words]
    assert differing == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man can't see the dog's 3/4-inch bone.", "a man ca n't see the dog 's 3/4-inch bone"),
        ("", ""),
        ("  ", ""),
        ("?!", "?!"),
        ("...", ""),
        ("(a) \"b\" 'c'", "-lrb- a -rrb- b c"),
        ("one  two", "one two"),
    ],
)
def test_a_caption_by_hand(text: str, words: str) -> None:
    assert [" ".join(found) for found in ptb_words([text])] == [words]


def test_a_letter_at_the_end_is_no_initial_if_a_sentence_follows() -> None:
    assert ptb_words(["the letter s.", "The cat"])[0] == ["the", "letter", "s"]
    assert ptb_words(["the letter s.", "cats"])[0] == ["the", "letter", "s."]


@pytest.mark.skipif(not has_java(), reason="the program that it is compared with is Java's")
def test_a_thousand_captions_are_as_java_has_them() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    documents = ShapesGenerator(documents=400, pairs=True).documents()
    shapes = [s.text for d in documents for s in d.segments if hasattr(s, "text")]  # type: ignore[union-attr]
    texts = [*(text for text, _ in CASES), *shapes]
    assert len(texts) >= 1000
    theirs = PTBTokenizer().tokenize({n: [{"caption": text}] for n, text in enumerate(texts)})
    python, java = (to_words(texts, [["x"]] * len(texts), java=java) for java in (False, True))
    assert list(python.captions) == list(java.captions) == [theirs[n][0].strip() for n in range(len(texts))]
