"""Answers to questions about held-out images, scored as the VQA challenge scores them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.errors import ConfigError
from lcl_composer.evaluation.evaluation import Row
from lcl_composer.evaluation.outcomes import Outcomes, Tally, write_outcomes
from lcl_composer.evaluation.vqa_accuracy import AGREEING, exact_match, normalised, vqa_accuracy
from lcl_composer.evaluation.writing import Writing, Written
from lcl_composer.methods.caption import VQA

if TYPE_CHECKING:
    from lcl_composer.methods.method import Method


class Answering(Writing):
    """Answers to the questions of held-out documents: VQA accuracy, and the share that somebody gave too.

    The first text of a document is the question and the others are people's answers. The answers go to
    ``answers.jsonl`` with pictures of the first ones. For comparison, the commonest answer to everything.

    Args:
        tokenizer: Gives the texts back.
        beams: Hypotheses of beam search; 1: the most likely token each time.
        max_new_tokens: Longest answer in tokens.
        length_penalty: Above 0 favours long answers in beam search, below 0 short ones.
        max_documents: The first documents of ``data.eval`` alone; None: all.
        batch_size: Documents that a rank writes about at once.

    Raises:
        ConfigError: If a value is out of range.
    """

    name, file = "vqa", "answers"

    def __init__(
        self,
        tokenizer: Tokenizer,
        beams: int = 1,
        max_new_tokens: int = 10,
        length_penalty: float = 1.0,
        max_documents: int | None = None,
        batch_size: int = 64,
    ):
        decoding = {"max_new_tokens": max_new_tokens, "beams": beams, "length_penalty": length_penalty}
        super().__init__(tokenizer, decoding, max_documents, batch_size)

    def shown(self, row: Written) -> tuple[str, list[str]]:
        """The question with the model's answer, and with each of people's."""
        question, *answers = row.texts
        return f"{question} {row.text}", [f"{question} {answer}" for answer in dict.fromkeys(answers)]

    def start(self, model: Method) -> None:
        """Raise ConfigError if the method answers no questions."""
        if not isinstance(model, VQA):
            raise ConfigError(f"evaluation.vqa: the method {type(model).__name__} answers nothing; use vqa")
        self.say_room(model)

    def compare(self, written: Sequence[Written], folder: Path) -> dict[str, Any]:
        """``accuracy`` (None where no question has several answers) and ``exact_match``, 0..1.

        Under ``chance/`` both of the commonest answer, said to every question.
        """
        answers = [[text for text in row.texts[1:] if text.strip()] for row in written]
        commonest = Counter(normalised(text) for several in answers for text in several).most_common(1)[0][0]
        accuracy, exact = _measure([row.text for row in written], answers)
        prior_accuracy, prior_exact = _measure([commonest] * len(written), answers)
        tallies = {"exact_match": Tally(exact)}
        several = max(map(len, answers)) > 1
        if several:
            tallies["accuracy"] = Tally(accuracy)
        facts = zip(written, answers, accuracy, exact, strict=True)
        lines = [
            {"question": row.texts[0], "answer": row.text, "answers": given, "accuracy": a, "exact_match": e}
            for row, given, a, e in facts
        ]
        self.keep(written, lines, folder)
        write_outcomes(Outcomes([row.id for row in written], tallies), folder, self.name)
        count = len(written)
        return {
            "accuracy": sum(accuracy) / count if several else None,
            "exact_match": sum(exact) / count,
            "commonest_answer": commonest,
            "chance/accuracy": sum(prior_accuracy) / count if several else None,
            "chance/exact_match": sum(prior_exact) / count,
            "questions": count,
            "fewest_answers": min(map(len, answers)),
        }

    def rows(self, result: dict[str, Any]) -> list[Row]:
        """Both beside the commonest answer's."""
        rows = []
        for name, label in (("accuracy", "VQA accuracy"), ("exact_match", "Exact match of answers")):
            if result[name] is not None:
                prior = result[f"chance/{name}"]
                compared = f"{prior:.1%} always {result['commonest_answer']!r}"
                difference = f"{100 * (result[name] - prior):+.1f} points"
                rows.append(Row(label, compared, f"{result[name]:.1%}", difference))
        return rows

    def note(self, result: dict[str, Any]) -> str:
        """How many questions, and whether all can be answered in full."""
        few = result["fewest_answers"]
        short = result["accuracy"] is not None and few <= AGREEING
        lacks = f"; VQA accuracy of a question with {few} answers stays below 1" if short else ""
        questions = f"{result['questions']:,} held-out questions"
        return f"Answers: to {questions}, normalised as VQA's{lacks}{self.left_out(result)}"


def _measure(said: Sequence[str], answers: Sequence[Sequence[str]]) -> tuple[list[float], list[float]]:
    """VQA accuracy and exact match of each question."""
    accuracy = [vqa_accuracy(text, given) for text, given in zip(said, answers, strict=True)]
    return accuracy, [float(exact_match(text, given)) for text, given in zip(said, answers, strict=True)]
