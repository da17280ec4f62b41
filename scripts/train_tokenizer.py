#!/usr/bin/env python
"""A byte-level BPE of the texts of converted sets: a small vocabulary for a small model.

    python scripts/train_tokenizer.py data/real/tokenizer.json data/real/gimp/train data/real/emoji/train

reads every document of each folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from lcl_composer.data.document import Text
from lcl_composer.data.shards import read_documents
from lcl_composer.data.tokenizer import train_bpe

VOCAB_SIZE = 4096


def texts_of(folder: Path) -> Iterator[str]:
    """Yield the text segments of a converted set."""
    for document in read_documents(folder):
        yield from (segment.text for segment in document.segments if isinstance(segment, Text))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("out", type=Path, help="the tokenizer, a JSON file")
    parser.add_argument("data", type=Path, nargs="+", help="folders of shards")
    arguments = parser.parse_args()
    train_bpe((text for folder in arguments.data for text in texts_of(folder)), VOCAB_SIZE, arguments.out)
    print(f"{arguments.out}: of {len(arguments.data)} sets")
