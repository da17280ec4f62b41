#!/usr/bin/env python
"""scikit-learn's handwritten digits as image folders: 1,797 pictures of 8 x 8 pixels.

    python scripts/digits.py data/real/digits_files

writes ``OUT/train/<digit>/`` and ``OUT/val/<digit>/``; the last 450 are for ``val``, unshuffled, as
neighbours are by one hand.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from lcl_composer.data.folders import whole_folder
from lcl_composer.errors import DataError

VAL = 450


def write_digits(out: Path) -> int:
    """Write all digits below ``out``; return their number."""
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # [N, 8, 8] from 0 to 16
    with whole_folder(out) as folder:
        for number, (image, digit) in enumerate(zip(pixels, digits.target, strict=True)):
            split = "val" if number >= len(pixels) - VAL else "train"
            path = folder / split / str(digit) / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return len(pixels)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    try:
        print(f"{arguments.out}: {write_digits(arguments.out)} digits")
    except DataError as error:
        sys.exit(f"error: {error}")
