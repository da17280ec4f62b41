"""Retrieval on ``data.eval`` for the table at the end of a run, with a gallery to look at."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.errors import ConfigError
from lcl_composer.evaluation.evaluation import Evaluation, Row
from lcl_composer.evaluation.gallery import Gallery
from lcl_composer.evaluation.metrics import retrieval_metrics
from lcl_composer.evaluation.retrieval import collect_features
from lcl_composer.evaluation.trial import check_documents
from lcl_composer.methods.method import contrast_of

if TYPE_CHECKING:
    from lcl_composer.methods.method import Method


class HeldOutRetrieval(Evaluation):
    """Recall of held-out images against the text that belongs to them, both ways, beside chance.

    What it finds for a few queries goes to ``gallery.json``, to be looked at in ``lcl report``.

    Args:
        tokenizer: Gives the texts of the gallery back.
        max_images: Images to rank against each other; fewer if the held-out set has fewer.

    Raises:
        ConfigError: If ``max_images`` is below 1.
    """

    def __init__(self, tokenizer: Tokenizer, max_images: int = 256):
        if max_images < 1:
            raise ConfigError(f"evaluation.retrieval.max_images: is {max_images}, must be at least 1")
        self.max_images, self.gallery = max_images, Gallery(tokenizer)

    def check(self, held_out: Iterable[PackedBatch]) -> None:
        """Raise DataError if the method can read no document."""
        check_documents(held_out, "retrieval")

    def start(self, model: Method) -> None:
        """Raise ConfigError if the method contrasts nothing."""
        contrast_of(model, "evaluation.retrieval")

    def measure(
        self, model: Method, held_out: Iterable[PackedBatch] | None, folder: Path
    ) -> dict[str, Any] | None:
        """What :func:`lcl_composer.evaluation.metrics.retrieval_metrics` returns; None without data."""
        if held_out is None:
            return None
        features = collect_features(model, self.gallery.watch(held_out), self.max_images)
        self.gallery.write(features, folder)
        return retrieval_metrics(features.images, features.contexts)

    def rows(self, result: dict[str, Any]) -> list[Row]:
        """Recall at 1, both ways."""
        chance, rows = result["chance/recall@1"], []
        for name, label in (("image_to_text", "Image to text R@1"), ("text_to_image", "Text to image R@1")):
            reached = result[f"{name}/recall@1"]
            factor = f"{reached / chance:.1f} x chance" if chance else ""
            rows.append(Row(label, f"{chance:.2%} by chance", f"{reached:.2%}", factor))
        return rows

    def note(self, result: dict[str, Any]) -> str:
        """How many were searched."""
        return f"R@1: {result['candidates']:.0f} held-out images against the text that belongs to each"
