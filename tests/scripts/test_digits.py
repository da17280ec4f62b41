"""scikit-learn's digits as image folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from scripts.digits import VAL, write_digits


def test_every_digit_lies_under_its_class_with_its_pixels(tmp_path: Path):
    assert write_digits(tmp_path / "digits") == 1797
    digits = load_digits()
    val = sorted((tmp_path / "digits/val").rglob("*.png"), key=lambda path: path.name)
    assert [int(path.parent.name) for path in val] == digits.target[-VAL:].tolist()
    assert np.array_equal(np.rint(np.asarray(Image.open(val[-1]), float) * 16 / 255), digits.images[-1])
    assert len(list((tmp_path / "digits/train").rglob("*.png"))) == 1797 - VAL
