"""Captions of held-out images, scored as COCO and NoCaps score them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.errors import ConfigError
from lcl_composer.evaluation.caption_scores import METRICS, Words, check_scorers, score, to_words
from lcl_composer.evaluation.evaluation import Row
from lcl_composer.evaluation.outcomes import Outcomes, Tally, write_outcomes
from lcl_composer.evaluation.writing import Writing, Written
from lcl_composer.methods.caption import VQA, Caption

if TYPE_CHECKING:
    from lcl_composer.methods.method import Method

#: How ``lcl convert nocaps`` begins an id.
DOMAINS = ("in-domain", "near-domain", "out-domain")
#: CIDEr of each caption with the references of another image.
ELSEWHERE = "chance/CIDEr"


class Captioning(Writing):
    """Captions of held-out images: BLEU-1 to 4, CIDEr, ROUGE-L, METEOR, by NoCaps' domains where there are.

    All texts of a document are its references. The captions go to ``captions.jsonl`` with pictures of the
    first ones. For comparison, CIDEr of the same captions with the references of another image.

    Args:
        tokenizer: Gives the texts back.
        beams: Hypotheses of beam search; 1: the most likely token each time.
        max_new_tokens: Longest caption in tokens.
        length_penalty: Above 0 favours long captions in beam search, below 0 short ones.
        temperature: Above 0: tokens are drawn.
        top_p: They are drawn from the most likely ones that have this share of the probability together.
        seed: Seed of the draws.
        max_documents: The first documents of ``data.eval`` alone; None: all.
        batch_size: Documents that a rank writes about at once.
        meteor: Whether METEOR is measured where Java is, which takes some seconds.

    Raises:
        ConfigError: If a value is out of range, or pycocoevalcap is not installed.
    """

    name, file = "captioning", "captions"

    def __init__(
        self,
        tokenizer: Tokenizer,
        beams: int = 1,
        max_new_tokens: int = 30,
        length_penalty: float = 1.0,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        max_documents: int | None = None,
        batch_size: int = 64,
        meteor: bool = True,
    ):
        check_scorers()
        decoding = {
            "max_new_tokens": max_new_tokens,
            "beams": beams,
            "length_penalty": length_penalty,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
        }
        super().__init__(tokenizer, decoding, max_documents, batch_size)
        self.meteor = meteor

    def start(self, model: Method) -> None:
        """Raise ConfigError if the method writes no captions."""
        if not isinstance(model, Caption) or isinstance(model, VQA):
            raise ConfigError(
                f"evaluation.captioning: the method {type(model).__name__} writes no captions; use caption"
            )
        self.say_room(model)

    def compare(self, written: Sequence[Written], folder: Path) -> dict[str, Any]:
        """Scores by name, each also as ``<domain>/<name>``, the number of images, the tokenizer.

        ``chance/CIDEr`` is that of the same captions with the references of another image.
        """
        references = [[text for text in row.texts if text.strip()] for row in written]
        words = to_words([row.text for row in written], references)
        scores = score(words, self.meteor)
        result: dict[str, Any] = {"images": len(written), "tokenizer": words.tokenizer, **scores.values}
        result[ELSEWHERE] = score(words.turned(), meteor=False).values["CIDEr"] if len(written) > 1 else None
        result |= self._by_domain(words, [row.id for row in written])
        each = scores.each["CIDEr"]
        lines = [
            {"caption": row.text, "references": texts, "CIDEr": cider}
            for row, texts, cider in zip(written, references, each, strict=True)
        ]
        self.keep(written, lines, folder)
        tallies = {name: Tally(values) for name, values in scores.each.items()}
        write_outcomes(Outcomes([row.id for row in written], tallies), folder, self.name)
        return result

    def _by_domain(self, words: Words, names: Sequence[str]) -> dict[str, Any]:
        """Scores of each of NoCaps' domains by itself, as if its images were all."""
        result = {}
        for domain in DOMAINS:
            numbers = [n for n, name in enumerate(names) if name.startswith(f"{domain}/")]
            if numbers and (part := words.part(numbers)).speak:
                values = score(part, self.meteor).values
                result |= {f"{domain}/{name}": value for name, value in values.items()}
                result[f"{domain}/images"] = len(numbers)
        return result

    def rows(self, result: dict[str, Any]) -> list[Row]:
        """The scores in per cent, CIDEr beside that with another image's references, and by domain."""
        elsewhere, rows = result[ELSEWHERE], []
        for name in METRICS:
            if result[name] is None:
                continue
            value, compared, difference = 100 * result[name], "", ""
            if name == "CIDEr" and elsewhere is not None:
                compared = f"{100 * elsewhere:.1f} of another image"
                difference = f"{value - 100 * elsewhere:+.1f}"
            rows.append(Row(name, compared, f"{value:.1f}", difference))
        for domain in DOMAINS:
            if f"{domain}/CIDEr" in result:
                rows.append(Row(f"CIDEr {domain}", "", f"{100 * result[f'{domain}/CIDEr']:.1f}", ""))
        return rows

    def note(self, result: dict[str, Any]) -> str:
        """How many captions, and who made the words."""
        lacks = "" if result["METEOR"] is not None else "; METEOR, a Java program, was not measured"
        one = "; CIDEr of a single image is 0" if result["images"] == 1 else ""
        images = f"{result['images']:,} held-out images"
        return f"Captions: {images}, words by {result['tokenizer']}{lacks}{one}{self.left_out(result)}"
