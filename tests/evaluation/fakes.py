"""A small model with LCLModel's interface, and packed batches for it, quick to build and to run."""

from __future__ import annotations

import torch
from composer.models import ComposerModel
from torch import Tensor, nn

from lcl_composer.data.batch import IGNORE, PackedBatch, count_totals

SIDE, PATCH, WIDTH, LATENT, HEADS, VOCAB = 16, 8, 12, 8, 2, 16
TOKENS_PER_DOCUMENT = 4  # text, text, <start_of_img>, text; one image, anchored at position 2


class FakeEncoder(nn.Module):
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


def make_batch(documents: int, seed: int = 0, prefix: str = "doc") -> PackedBatch:
    """A batch of documents with one image each, whose colour the text names (8 colours)."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(8, (documents,), generator=generator)
    corners = torch.stack([colours // 4 % 2, colours // 2 % 2, colours % 2], 1)[..., None, None] * 200
    noise = torch.randint(40, (documents, 3, SIDE, SIDE), generator=generator)
    tokens = torch.stack([torch.full((documents,), 9), colours, torch.full((documents,), 10), colours], 1)
    targets = torch.stack([colours, torch.full((documents,), 10), *[torch.full((documents,), IGNORE)] * 2], 1)
    starts = torch.arange(documents) * TOKENS_PER_DOCUMENT
    anchors = starts + 2
    return PackedBatch(
        tokens=tokens.flatten(),
        targets=targets.flatten(),
        positions=torch.arange(TOKENS_PER_DOCUMENT).repeat(documents),
        cu_seqlens=torch.arange(
            0, (documents + 1) * TOKENS_PER_DOCUMENT, TOKENS_PER_DOCUMENT, dtype=torch.int32
        ),
        pixel_values=(corners + noise).to(torch.uint8),
        image_starts=torch.full((documents,), -1),
        anchors=anchors,
        images_per_document=torch.ones(documents, dtype=torch.int64),
        totals=count_totals(targets, anchors, documents),
        ids=[f"{prefix}{seed}-{i}" for i in range(documents)],
    )
