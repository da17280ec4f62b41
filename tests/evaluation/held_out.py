"""Held-out documents in shards and their loader, for evaluations that write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lcl_composer.config.schema import StreamConfig
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.interleave import Layout
from lcl_composer.data.loader import build_loader
from lcl_composer.data.writer import DocumentWriter
from tests import runs
from tests.models.tiny import IMAGE_SIZE


def write_documents(folder: Path, texts: dict[str, Sequence[str]]) -> Path:
    """A picture of noise, the id's own, and the texts of each id."""
    with DocumentWriter(folder, size_limit=1 << 12) as writer:
        for name, several in texts.items():
            image = Image(runs.picture(np.random.default_rng([9, *name.encode()])))
            writer.write(Document(name, "test", (image, *map(Text, several))))
    return folder


def loader_of(folder: Path, layout: Layout, batch_size: int):
    """The held-out loader of this rank, ``batch_size`` documents each."""
    return build_loader(
        StreamConfig(local=str(folder), num_workers=0),
        train=False,
        layout=layout,
        image_size=IMAGE_SIZE,
        batch_size=batch_size,
        seed=1,
        max_bad_fraction=1.0,
        pin_memory=False,
    ).dataloader
