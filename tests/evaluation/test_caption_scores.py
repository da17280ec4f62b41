"""Scores by hand and beside pycocoevalcap's own; what is said where Java or the package is missing."""

from __future__ import annotations

import math

import pytest

from lcl_composer.errors import ConfigError, DataError
from lcl_composer.evaluation import caption_scores
from lcl_composer.evaluation.caption_scores import PLAIN, STANFORD, check_scorers, has_java, score, to_words

CAPTIONS = ["A dog runs.", "a cat sits on a mat", ""]
#: Four, seven and one; duplicates, an empty one, one of punctuation.
REFERENCES = [
    ["a dog runs", "A dog runs!", "a dog runs", "the dog is running"],
    [
        "a cat on a mat",
        "cat",
        "a black cat sits",
        "there's a cat",
        "a cat's mat",
        "...",
        "a cat sits on a mat",
    ],
    ["a bird"],
]


def test_scores_are_those_of_pycocoevalcap() -> None:
    """Its classes on words made by hand."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    words = {0: ["a dog runs"], 1: ["a cat sits on a mat"], 2: [""]}
    references = {
        0: ["a dog runs", "a dog runs", "a dog runs", "the dog is running"],
        1: [
            "a cat on a mat",
            "cat",
            "a black cat sits",
            "there 's a cat",
            "a cat 's mat",
            "",
            "a cat sits on a mat",
        ],
        2: ["a bird"],
    }
    found = score(to_words(CAPTIONS, REFERENCES, java=False), meteor=False).values
    expected = dict(
        zip(
            ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"],
            Bleu(4).compute_score(references, words, 0)[0],
            strict=True,
        )
    )
    expected |= {"CIDEr": Cider().compute_score(references, words)[0]}
    expected |= {"ROUGE-L": Rouge().compute_score(references, words)[0]}
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-12), name
    assert found["METEOR"] is None


def test_scores_by_hand() -> None:
    """Two images, one word each; the right ones, then the wrong ones."""
    right = score(to_words(["dog", "cat"], [["dog"], ["cat", "cat"]], java=False), meteor=False)
    assert right.values["BLEU-1"] == pytest.approx(1.0)
    assert right.values["ROUGE-L"] == pytest.approx(1.0)
    # Unigrams alone are there: a cosine of 1 for one of four lengths, times 10.
    assert right.each["CIDEr"] == pytest.approx([2.5, 2.5])
    wrong = score(to_words(["dog", "cat"], [["dog"], ["cat"]], java=False).turned(), meteor=False)
    assert wrong.values["CIDEr"] == wrong.values["ROUGE-L"] == 0.0
    assert wrong.values["BLEU-1"] == pytest.approx(0.0, abs=1e-9)


def test_one_image_has_no_cider() -> None:
    values = score(to_words(["a dog runs"], [["a dog runs"]], java=False), meteor=False).values
    assert values["CIDEr"] == 0.0
    assert values["BLEU-1"] == pytest.approx(1.0)
    assert all(value is None or math.isfinite(value) for value in values.values())


def test_a_part_is_scored_as_if_it_were_all() -> None:
    words = to_words(CAPTIONS, REFERENCES, java=False)
    part = score(words.part([0, 2]), meteor=False)
    alone = score(
        to_words([CAPTIONS[0], CAPTIONS[2]], [REFERENCES[0], REFERENCES[2]], java=False), meteor=False
    )
    assert part == alone != score(words, meteor=False)


def test_an_image_without_reference_is_refused() -> None:
    with pytest.raises(DataError, match="image 1 of 2 has no caption"):
        to_words(["a", "b"], [["a"], []])


@pytest.mark.parametrize("java", [False, has_java()])
def test_references_without_a_word_are_refused(java: bool) -> None:
    with pytest.raises(DataError, match="of 2 images none has a reference with a word"):
        score(to_words(["a", "b"], [["..."], [" ", ""]], java=java), meteor=False)


def test_any_script_and_length_is_scored() -> None:
    texts = [
        "一只猫坐在垫子上",
        "кошка сидит на коврике",
        "قطة على الحصيرة",
        "ภาพแมว",
        "red " * 10_000,
        "...",
        "",
    ]
    others = [[text, "a cat"] for text in texts[:5]] + [["a cat"]] * 2
    values = score(to_words(texts, others, java=False), meteor=False)
    assert values.each["ROUGE-L"] == [pytest.approx(1.0)] * 5 + [0.0] * 2
    assert min(values.each["CIDEr"][:4]) > 1.0


@pytest.mark.slow
@pytest.mark.skipif(not has_java(), reason="METEOR is a Java program")
def test_meteor_and_the_tokenizer_where_java_is(monkeypatch: pytest.MonkeyPatch) -> None:
    words = to_words(["a dog runs", "a cat"], [["a dog runs", "a ||| dog"], ["the bird"]])
    assert words.tokenizer == STANFORD
    assert words.references[1] == ["the bird"]
    meteor = score(words).values["METEOR"]
    assert meteor is not None
    assert 0.3 < meteor < 0.9
    monkeypatch.setattr(caption_scores, "has_java", lambda: False)
    assert score(words).values["METEOR"] is None
    assert to_words(["a"], [["a"]]).tokenizer == PLAIN


def test_a_java_that_fails_is_said_and_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'no memory' >&2\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    words = to_words(["A dog's."], [["a dog"]])
    assert (words.captions, words.tokenizer) == (["a dog 's"], PLAIN)
    assert score(words).values["METEOR"] is None
    assert "no memory" in caplog.text
    assert "METEOR failed" in caplog.text


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'lcl-composer\[transfer\]'"):
        check_scorers()
