"""Labelled folders of coloured noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.evaluation.batches import SIDE


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def write_folder(
    root: Path, per_class: int, classes: tuple[str, ...] = ("blue", "green", "red"), seed: int = 0
) -> Path:
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 100, (SIDE, SIDE, 3), dtype=np.uint8)
            pixels[..., ("red", "green", "blue").index(name)] += 120
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root
