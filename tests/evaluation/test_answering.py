"""Answers to held-out questions: what is measured, beside what, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lcl_composer.data.shared_memory import clean_shared_memory
from lcl_composer.errors import ConfigError
from lcl_composer.evaluation.answering import Answering
from lcl_composer.evaluation.outcomes import read_outcomes
from lcl_composer.methods.caption import VQA, Caption
from tests.evaluation.held_out import loader_of, write_documents
from tests.models.tiny import RULES, TOKENIZER, tiny_method

TEXTS = {"a": ["1 2", "7", "7", "7", "7"], "b": ["3", "7", "8", "8"], "c": ["3 3", "9"]}


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    clean_shared_memory()


@torch.no_grad()
def measured(
    folder: Path, texts: dict[str, Any], said: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The result of a model that says this to the questions."""
    model = tiny_method(VQA, prompt="{}").eval()
    monkeypatch.setattr(model, "write", lambda *_: said)
    held_out = loader_of(write_documents(folder / "data", texts), model.layout(TOKENIZER, RULES), len(texts))
    result = Answering(TOKENIZER).measure(model, held_out, folder)
    assert result is not None
    return result


def test_answers_are_measured_beside_the_commonest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = measured(tmp_path, TEXTS, [[7], [8], [7]], monkeypatch)
    of_b = (2 / 3 + 1 / 3 + 1 / 3) / 3  # of the two who say 8, one is missing from two of three sets
    assert result["accuracy"] == pytest.approx((1.0 + of_b + 0.0) / 3)
    assert result["exact_match"] == pytest.approx(2 / 3)
    assert result["commonest_answer"] == "7"
    assert result["chance/accuracy"] == pytest.approx((1.0 + (0 + 1 / 3 + 1 / 3) / 3 + 0.0) / 3)
    assert result["chance/exact_match"] == pytest.approx(2 / 3)
    assert (result["questions"], result["fewest_answers"]) == (3, 1)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(line["question"], line["answer"], line["answers"]) for line in lines[1:]] == [
        ("3", "8", ["7", "8", "8"]),
        ("3 3", "7", ["9"]),
    ]
    cards = json.loads((tmp_path / "captions.json").read_text())
    assert (cards[1]["text"], cards[1]["references"]) == ("3 8", ["3 7", "3 8"])
    outcomes = read_outcomes(tmp_path, "vqa")
    assert outcomes is not None
    assert {name: tally.value for name, tally in outcomes.tallies.items()} == pytest.approx(
        {name: result[name] for name in ("accuracy", "exact_match")}
    )
    evaluation = Answering(TOKENIZER)
    assert [row.measured for row in evaluation.rows(result)] == ["VQA accuracy", "Exact match of answers"]
    assert evaluation.note(result).endswith("VQA accuracy of a question with 1 answers stays below 1")


def test_one_answer_a_question_has_no_vqa_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = measured(tmp_path, {"a": ["1", "2"], "b": ["3", "4"]}, [[2], [2]], monkeypatch)
    assert (result["accuracy"], result["exact_match"]) == (None, 0.5)
    (row,) = Answering(TOKENIZER).rows(result)
    assert row == ("Exact match of answers", "50.0% always '2'", "50.0%", "+0.0 points")


def test_settings_out_of_range_name_the_evaluation() -> None:
    with pytest.raises(ConfigError, match=r"^evaluation\.vqa: max_new_tokens=0; need"):
        Answering(TOKENIZER, max_new_tokens=0)


def test_a_method_without_questions_is_refused() -> None:
    with pytest.raises(ConfigError, match="the method Caption answers nothing; use vqa"):
        Answering(TOKENIZER).start(tiny_method(Caption))
    Answering(TOKENIZER).start(tiny_method(VQA, prompt="1 {} 2"))
