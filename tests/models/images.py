"""Pixels, and what every encoder must do with them."""

from __future__ import annotations

import torch

from lcl_composer.models.encoder import Encoder


def pixels(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def check(encoder: Encoder, size: int, tokens: int, width: int) -> None:
    """Shapes as announced, every image by itself, and a gradient for all that is trained."""
    assert (encoder.tokens_per_image, encoder.width, encoder.image_size) == (tokens, width, size)
    output = encoder.train()(pixels(3, size))
    assert output.shape == (3, tokens, width)
    output.square().sum().backward()
    wrong = [n for n, p in encoder.named_parameters() if p.requires_grad != (p.grad is not None)]
    assert not wrong
    with torch.no_grad():
        alone = encoder.eval()(pixels(3, size)[1:2])
        torch.testing.assert_close(alone, encoder(pixels(3, size))[1:2], rtol=1e-4, atol=1e-5)
