"""The tokenizer of converted sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.writer import DocumentWriter
from lcl_composer.errors import DataError
from scripts.train_tokenizer import texts_of
from tests.data.conftest import png


def test_all_text_of_a_set_is_read(tmp_path: Path) -> None:
    texts = [("a red circle", "on the left"), ("a green square",)]
    with DocumentWriter(tmp_path) as writer:
        for number, parts in enumerate(texts):
            segments = (Image(png(number)), *(Text(part) for part in parts))
            writer.write(Document(f"d{number}", "test", segments))
    assert sorted(texts_of(tmp_path)) == sorted(part for parts in texts for part in parts)


def test_a_folder_without_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        list(texts_of(tmp_path))
