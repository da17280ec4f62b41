"""Where the attentive pooler looks: its attention over held-out images, every so often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from composer.core import State
from composer.loggers import Logger
from matplotlib import colormaps
from torch import Tensor
from torch.nn import functional

from lcl_composer.callbacks.periodic import HeldOut, Periodic, evaluating
from lcl_composer.callbacks.pictures import show
from lcl_composer.errors import ConfigError
from lcl_composer.evaluation.quiet import device_of
from lcl_composer.methods.method import Method, method_of

_GAP = 4  # pixels of white between tiles
_PEAK = 3  # times the even weight that is drawn as bright as can be
_MIN_SIDE = 96  # small images are enlarged to this, to be seen


class AttentionMaps(Periodic):
    """Show the pooler's attention over held-out images as a PNG grid.

    One row an image: the image, the mean of the heads over it, then each head (at most six). Bright is much
    attention: a map is scaled to its own maximum, or to three times the even weight 1/K where no patch
    gets as much, so that a head that looks nowhere stays dim. The grid goes to
    ``attention_maps/ba000500.png`` in the run folder and, as ``attention_maps``, to the loggers that show
    images. The images are the same each time; without held-out data they are those of the current batch.

    Args:
        every: Composer time string.
        images: Rows of the grid.
    """

    def __init__(self, every: str = "500ba", images: int = 8):
        super().__init__(every)
        self.images = images
        self.held_out = HeldOut(images)

    def check(self, model: Method) -> None:
        """Raise ConfigError if there is no attention to look at."""
        if not hasattr(model.parts.get("pooler"), "attention"):
            raise ConfigError("callbacks.attention_maps: the method has no attentive pooler; remove it")

    def act(self, state: State, logger: Logger) -> None:
        """Draw the grid."""
        batches = self.held_out.batches(state)
        pixels = torch.cat([batch["pixel_values"] for batch in batches])[: self.images]
        with evaluating(state):
            model = method_of(state)
            self.check(model)
            attend: Any = model.parts["pooler"].attention
            if len(pixels) == 0:
                return
            tokens = model.encoder(pixels.to(device_of(model)))
            attention = attend(tokens).float().cpu()
        show(state, logger, "attention_maps", draw_grid(pixels.cpu(), attention))


def to_display(pixels: Tensor) -> np.ndarray:
    """Pixels [I, 3, H, W] as uint8 [I, H, W, 3]; normalised float is stretched to its own range."""
    if pixels.dtype != torch.uint8:
        low, high = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
        pixels = ((pixels - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).numpy()


def overlay(image: np.ndarray, weights: Tensor) -> np.ndarray:
    """Lay attention over an image.

    Args:
        image: uint8 [H, W, 3].
        weights: Attention over K patches, row by row; K is a square.

    Returns:
        uint8 [H, W, 3], half image in grey, half heat.
    """
    side = round(len(weights) ** 0.5)
    heat = weights.view(1, 1, side, side) / max(float(weights.max()), _PEAK / len(weights))
    heat = functional.interpolate(heat, image.shape[:2], mode="bicubic").clamp(0, 1)[0, 0].numpy()
    grey = image.mean(-1, keepdims=True)
    return (0.45 * grey + 0.55 * 255 * colormaps["inferno"](heat)[..., :3]).astype(np.uint8)


def draw_grid(pixels: Tensor, attention: Tensor, max_heads: int = 6) -> np.ndarray:
    """The grid: a row an image, its columns the image, the mean of the heads, and heads.

    Args:
        pixels: [I, 3, H, W] uint8 or normalised float.
        attention: [I, heads, K], each row sums to 1.
        max_heads: Columns of single heads.

    Returns:
        uint8 [height, width, 3].
    """
    rows = []
    for image, weights in zip(to_display(pixels), attention, strict=True):
        scale = max(1, -(-_MIN_SIDE // image.shape[0]))
        image = image.repeat(scale, 0).repeat(scale, 1)
        rows.append(
            _beside([image, *(overlay(image, w) for w in (weights.mean(0), *weights[:max_heads]))], axis=1)
        )
    return _beside(rows, axis=0)


def _beside(tiles: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Join tiles along an axis with white between them."""
    shape = list(tiles[0].shape)
    shape[axis] = _GAP
    white = np.full(shape, 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, white)][:-1], axis=axis)
