"""What another library makes of an export, held to what we make of it."""

from __future__ import annotations

import torch
from torch import Tensor

from lcl_composer.errors import DataError
from lcl_composer.models.encoder import Encoder

#: Largest difference, relative to the largest feature.
TOLERANCE = 1e-5


def some_pixels(encoder: Encoder, count: int = 2) -> Tensor:
    """Normalised pixels [count, 3, S, S] of noise, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, encoder.image_size, encoder.image_size, generator=generator)


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
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))
    if not difference <= TOLERANCE:
        raise DataError(
            f"export: read back by {library}, {what} differ by {difference:.1e}, more than {TOLERANCE:.0e}; "
            "nothing is written"
        )
