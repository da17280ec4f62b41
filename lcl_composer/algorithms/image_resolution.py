"""Train on small images first and on full ones at the end."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from timm.layers.format import Format
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from lcl_composer.algorithms.schedule import Schedule, Scheduled, Shape
from lcl_composer.errors import ConfigError
from lcl_composer.methods.method import Method
from lcl_composer.models.encoder import Encoder


class ImageResolution(Scheduled):
    """Grows the encoder's input from ``start`` pixels to ``model.encoder.image_size`` in steps of a patch.

    Images are resized on the device and position embeddings are interpolated in the forward: parameters and
    checkpoints keep the full size. The patch tokens of a small image are interpolated back to the full grid
    before the pooler, so that pooler, token layout and language model are those of full images; the layout is
    made in the loader's workers, whose batches are on their way long before a step is due. The encoder's time
    shrinks with the area, the language model's stays. Evaluation sees full images. Logged as
    ``algorithms/image_size`` in pixels.

    Args:
        start: Side in pixels up to ``begin``, a multiple of the patch size.
        until: When the full size is reached; leave it some training.
        shape: The way between.
        begin: When it starts to grow.

    Raises:
        ValueError: If the times do not fit each other.
    """

    def __init__(self, start: int, until: str, shape: Shape = "linear", begin: str = "0ba"):
        super().__init__(Schedule(start, start, shape, begin, until), "algorithms/image_size")
        self._side = self._patch = 0

    def check(self, model: Method) -> None:
        """Refuse an encoder whose images cannot be made smaller by whole patches.

        Raises:
            ConfigError: If the encoder is no timm VisionTransformer with position embeddings, or ``start``
                does not fit it.
        """
        encoder = model.encoder
        backbone: Any = encoder.backbone
        if not isinstance(backbone, VisionTransformer) or backbone.pos_embed is None:
            raise ConfigError(
                "algorithms.image_resolution: takes a timm VisionTransformer with position embeddings, not "
                f"{type(backbone).__name__}"
            )
        patch, start = backbone.patch_embed.patch_size[0], self.schedule.start
        if start % patch or not patch <= start <= encoder.image_size:
            raise ConfigError(
                f"algorithms.image_resolution.start: {start} must be a multiple of the patch size {patch}, "
                f"up to {encoder.image_size}"
            )

    def prepare(self, model: Method) -> None:
        """Let the encoder take other sizes, and hang the two resizings around it."""
        encoder = model.encoder
        backbone: Any = encoder.backbone
        self._patch, self.schedule.end = backbone.patch_embed.patch_size[0], encoder.image_size
        backbone.dynamic_img_size = True
        embed = backbone.patch_embed
        embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
        encoder.register_forward_pre_hook(self._shrink)
        encoder.register_forward_hook(self._grow)

    def set(self, model: Method, value: float) -> float:
        """Set the side, a whole number of patches; the full size only when the schedule is there."""
        self._side = self._patch * math.floor(value / self._patch)
        return self._side

    def _shrink(self, encoder: Encoder, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """Normalise and resize the pixels [I, 3, H, W]."""
        if not encoder.training or self._side == encoder.image_size:
            return None
        pixels = encoder.normalize(inputs[0])
        return (F.interpolate(pixels, size=(self._side, self._side), mode="bilinear", antialias=True),)

    def _grow(self, encoder: Encoder, inputs: tuple[Tensor], tokens: Tensor) -> Tensor | None:
        """Interpolate patch tokens [I, k, W] of the small grid to the full one, [I, K, W]."""
        if not encoder.training or self._side == encoder.image_size:
            return None
        small, full = self._side // self._patch, encoder.image_size // self._patch
        grid = tokens.transpose(1, 2).unflatten(2, (small, small))
        return F.interpolate(grid, size=(full, full), mode="bilinear").flatten(2).transpose(1, 2)
