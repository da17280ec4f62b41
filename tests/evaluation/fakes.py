"""A small model with LCL's interface, quick to build and to run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lcl_composer.data.batch import IGNORE, PackedBatch
from lcl_composer.data.interleave import Interleaved, Layout
from lcl_composer.methods.contrast import Contrast
from lcl_composer.methods.method import Method, Term
from tests.evaluation.batches import SIDE

PATCH, WIDTH, LATENT, HEADS, VOCAB = 8, 12, 8, 2, 16


class FakeEncoder(nn.Module):
    image_size = SIDE
    weights = ""
    description: ClassVar = {"encoder": "a fake"}

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.patches(pixel_values.float() / 127.5 - 1).flatten(2).transpose(1, 2)


class FakePooler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(WIDTH, HEADS)
        self.project = nn.Linear(WIDTH, LATENT)

    def attention(self, tokens: Tensor) -> Tensor:
        return self.scores(tokens).transpose(1, 2).softmax(-1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.project((self.attention(tokens).mean(1, keepdim=True) @ tokens).squeeze(1))


class FakeLCL(Method):
    """Encoder, pooler, and for a language model an embedding of the token before the image."""

    part_names = ("encoder", "pooler")

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder, self.pooler = FakeEncoder(), FakePooler()  # type: ignore[assignment]
        self.embed = nn.Embedding(VOCAB, LATENT)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(LATENT, VOCAB)
        contrast = Contrast(self, logit_scale_init=math.exp(2))
        self.terms = {
            "contrastive": Term(0.1, "pairs", ("image_features", "context_features"), contrast),
            "generation": Term(1.0, "targets", ("hidden", "targets"), self._generation, self.head),
        }

    def layout(self, tokenizer: Any, rules: Any) -> Layout:
        return Interleaved(tokenizer, rules)

    def forward(self, batch: PackedBatch) -> dict[str, Tensor]:
        hidden = self.dropout(self.embed(batch["tokens"]))
        anchored = batch["anchors"] >= 0
        predicting = batch["targets"] != IGNORE
        return {
            "image_features": self.encode_images(batch["pixel_values"])[0][anchored],
            "context_features": hidden[batch["anchors"][anchored] - 1],
            "hidden": hidden[predicting],
            "targets": batch["targets"][predicting],
        }

    def _generation(self, hidden: Tensor, targets: Tensor, total: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.head(hidden), targets, reduction="sum") / total


@dataclass
class Words:
    """A tokenizer whose ids below 10 are digits."""

    vocab_size: int = 16
    start_of_text: int = 11
    end_of_text: int = 12
    image_placeholder: int = 13
    start_of_image: int = 10
    end_of_image: int = 14

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))
