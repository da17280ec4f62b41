"""What another library makes of an export, held to what we make of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lcl_composer.data.image import eval_transform
from lcl_composer.errors import DataError
from lcl_composer.models.encoder import Encoder

#: Largest difference, relative to the largest feature.
TOLERANCE = 1e-5


def some_pixels(encoder: Encoder, count: int = 2) -> Tensor:
    """Normalised pixels [count, 3, S, S] of noise, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, encoder.image_size, encoder.image_size, generator=generator)


def some_image(encoder: Encoder) -> Image.Image:
    """Smooth noise of another size and shape, of which all libraries cut the same square.

    They round a crop's offset in their own ways, so it is a whole number of pixels here.
    """
    side = encoder.image_size
    width = 4 * side if side % 2 == 0 else 2 * side
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8))
    return small.resize((width, 2 * side), Image.Resampling.BICUBIC)


def check_pixels(library: str, prepare: Callable[[Image.Image], Tensor], encoder: Encoder) -> None:
    """Hold a library's preparation of an image, to normalised pixels [1, 3, S, S], to ours.

    Raises:
        DataError: If they differ.
    """
    image = some_image(encoder)
    ours = encoder.normalize(eval_transform(image, encoder.image_size)[None])
    check_same(library, prepare(image), ours, "pixels")


def check_same(library: str, found: Tensor, expected: Tensor, what: str = "features") -> None:
    """Hold what a library computed to what we did.

    Raises:
        DataError: If the shapes differ, or a value by more than :data:`TOLERANCE` of the largest.
    """
    if found.shape != expected.shape:
        raise DataError(
            f"export: {library} gives {what} of shape {tuple(found.shape)}, not {tuple(expected.shape)}; "
            "nothing is written"
        )
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    difference = float((found - expected).abs().max() / largest)
    if not difference <= TOLERANCE:
        raise DataError(
            f"export: read back by {library}, {what} differ by {difference:.1e}, more than {TOLERANCE:.0e}; "
            "nothing is written"
        )
