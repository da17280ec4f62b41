#!/usr/bin/env python
"""Image folders for a linear probe, from converted captions whose ids begin with a class folder.

    python scripts/class_folders.py data/real/stamps data/real/classes

writes ``OUT/train/<class>/`` and ``OUT/val/<class>/`` from the sets ``train`` and ``held_out``, so that the
probe is measured on images that pre-training has not seen either. A class of under ``MIN_IMAGES`` images in
``train`` or of none in ``held_out`` is left out, and named. ``--train '*-google.png' --val '*-openmoji.png'``
takes one artist's images to learn from and another's to be measured on.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

from lcl_composer.data.document import Document
from lcl_composer.data.folders import whole_folder
from lcl_composer.data.shards import read_documents
from lcl_composer.errors import DataError

MIN_IMAGES = 10
SPLITS = {"train": "train", "held_out": "val"}

Images = list[tuple[str, Document]]


def read_classes(folder: Path, ids: str) -> Images:
    """Return (class, document) of each document of a converted set whose id matches the pattern ``ids``."""
    documents = (document for document in read_documents(folder) if fnmatch(document.id, ids))
    return [(document.id.split("/")[0], document) for document in documents]


def write_classes(sets: dict[str, Images], out: Path) -> list[str]:
    """Write each set's images below ``out``; return the names of the classes that are written."""
    train, held_out = (Counter(name for name, _ in sets[split]) for split in SPLITS)
    kept = sorted(name for name in train if train[name] >= MIN_IMAGES and held_out[name])
    with whole_folder(out) as folder:
        for split, images in sets.items():
            for number, (name, document) in enumerate(images):
                if name in kept:
                    path = folder / SPLITS[split] / name / f"{number:05}{Path(document.id).suffix}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(document.images[0].data)
    small = ", ".join(sorted({*train, *held_out} - {*kept}))
    print(f"{out}: {len(kept)} classes; too small: {small or 'none'}")
    return kept


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("data", type=Path, help="folder with the sets train and held_out")
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", default="*", metavar="IDS", help="pattern of the ids to learn from")
    parser.add_argument("--val", default="*", metavar="IDS", help="pattern of the ids to be measured on")
    arguments = parser.parse_args()
    patterns = {"train": arguments.train, "held_out": arguments.val}
    sets = {split: read_classes(arguments.data / split, ids) for split, ids in patterns.items()}
    try:
        write_classes(sets, arguments.out)
    except DataError as error:
        sys.exit(f"error: {error}")
