"""Packed batches for the fake model."""

from __future__ import annotations

import torch

from lcl_composer.data.batch import IGNORE, PackedBatch, count_totals, find_places

SIDE = 16
TOKENS_PER_DOCUMENT = 4  # text, text, <start_of_img>, text; one image, anchored at position 2


def make_batch(documents: int, seed: int = 0, prefix: str = "doc") -> PackedBatch:
    """A batch of documents with one image each, whose colour the text names (8 colours)."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(8, (documents,), generator=generator)
    corners = torch.stack([colours // 4 % 2, colours // 2 % 2, colours % 2], 1)[..., None, None] * 200
    noise = torch.randint(40, (documents, 3, SIDE, SIDE), generator=generator)
    tokens = torch.stack([torch.full((documents,), 9), colours, torch.full((documents,), 10), colours], 1)
    nothing = torch.full((documents,), IGNORE)
    targets = torch.stack([colours, torch.full((documents,), 10), nothing, nothing], 1).flatten()
    starts = torch.arange(documents) * TOKENS_PER_DOCUMENT
    anchors = starts + 2
    image_starts = torch.full((documents,), -1)
    places = find_places(targets, anchors, image_starts)
    return PackedBatch(
        tokens=tokens.flatten(),
        targets=targets,
        positions=torch.arange(TOKENS_PER_DOCUMENT).repeat(documents),
        cu_seqlens=torch.arange(
            0, (documents + 1) * TOKENS_PER_DOCUMENT, TOKENS_PER_DOCUMENT, dtype=torch.int32
        ),
        pixel_values=(corners + noise).to(torch.uint8),
        image_starts=image_starts,
        anchors=anchors,
        seeds=torch.zeros(documents, dtype=torch.int64),
        hidden_patches=torch.zeros(documents, 0, dtype=torch.int64),
        images_per_document=torch.ones(documents, dtype=torch.int64),
        lengths=[TOKENS_PER_DOCUMENT] * documents,
        **places._asdict(),
        spans=[],
        totals=count_totals(places, documents, documents),
        ids=[f"{prefix}{seed}-{i}" for i in range(documents)],
    )
