"""Small data sets of made-up Documents."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.shared_memory import clean_shared_memory
from lcl_composer.data.writer import DocumentWriter

MakeDataset = Callable[..., Path]


def png(seed: int, size: int = 12) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def example(index: int) -> Document:
    """A document with 1 or 2 images, one of them floating; texts are numbers for NumberTokenizer."""
    segments = [Text(f"{index + 1} 7"), Image(png(index)), Text("8 9")]
    if index % 2:
        segments += [Image(png(1000 + index), floats=True), Text("11")]
    return Document(f"doc-{index:03}", "test", tuple(segments))


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    def make(documents: list[Document] | int, name: str = "data", size_limit: int = 1 << 12) -> Path:
        rows = [example(i) for i in range(documents)] if isinstance(documents, int) else documents
        with DocumentWriter(tmp_path / name, size_limit=size_limit) as writer:
            for row in rows:
                writer.write(row)
        return tmp_path / name

    return make


@pytest.fixture(autouse=True)
def _clean_shared_memory() -> Iterator[None]:
    yield
    clean_shared_memory()
