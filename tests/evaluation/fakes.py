"""A small model with LCLModel's interface, quick to build and to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from composer.models import ComposerModel
from torch import Tensor, nn

from lcl_composer.data.batch import IGNORE, PackedBatch
from tests.evaluation.batches import SIDE

PATCH, WIDTH, LATENT, HEADS, VOCAB = 8, 12, 8, 2, 16


class FakeEncoder(nn.Module):
    image_size = SIDE

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


class FakeLCL(ComposerModel):
    """Encoder, pooler, and for a language model an embedding of the token before the image."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder, self.pooler = FakeEncoder(), FakePooler()
        self.embed = nn.Embedding(VOCAB, LATENT)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(LATENT, VOCAB)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def scale(self) -> Tensor:
        return self.logit_scale.exp()

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.encoder(pixel_values)
        return self.pooler(tokens), tokens

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

    def loss(self, outputs: dict[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        images = nn.functional.normalize(outputs["image_features"], dim=1)
        contexts = nn.functional.normalize(outputs["context_features"], dim=1)
        logits = self.scale() * images @ contexts.T
        contrastive = nn.functional.cross_entropy(logits, torch.arange(len(logits)))
        generation = nn.functional.cross_entropy(self.head(outputs["hidden"]), outputs["targets"])
        return {
            "contrastive": contrastive,
            "generation": generation,
            "total": 0.1 * contrastive + generation,
        }

    def eval_forward(self, batch: PackedBatch, outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        return outputs if outputs is not None else self(batch)


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
