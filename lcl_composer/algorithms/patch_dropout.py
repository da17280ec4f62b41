"""Drop patches of each image in the encoder, on a schedule."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lcl_composer.algorithms.schedule import Schedule, Scheduled, Shape
from lcl_composer.errors import ConfigError
from lcl_composer.methods.method import Method


class PatchDropout(Scheduled):
    """The encoder sees a random part of each image's patches (FLIP, arXiv 2212.00794): less time, some noise.

    The token layout does not change: a patch that was dropped leaves its slot in the language model with the
    embedding of ``<img_placehold>``. Drawn anew for each image and batch from torch's generator; evaluation
    sees all patches. To end on whole images give ``end: 0``. Logged as ``algorithms/patch_dropout``.

    Args:
        rate: Share of patches dropped up to ``begin``, 0 to below 1.
        end: Share from ``until`` on; None for ``rate`` throughout.
        shape: The way between.
        begin: When it starts to move.
        until: When it arrives.

    Raises:
        ValueError: If a share is not in 0..1 or the times do not fit each other.
    """

    def __init__(
        self,
        rate: float,
        end: float | None = None,
        shape: Shape = "linear",
        begin: str = "0ba",
        until: str = "1dur",
    ):
        end = rate if end is None else end
        if not (0 <= rate < 1 and 0 <= end < 1):
            raise ValueError(f"rate {rate} and end {end} must be at least 0 and below 1")
        super().__init__(Schedule(rate, end, shape, begin, until), "algorithms/patch_dropout")
        self._keep: KeepPatches | None = None

    def check(self, model: Method) -> None:
        """Refuse an encoder whose patches cannot be dropped, and a share that comes to no patch.

        Raises:
            ConfigError: If the encoder is no timm VisionTransformer, or drops patches already, or none would
                be dropped.
        """
        backbone = model.encoder.backbone
        if not isinstance(backbone, VisionTransformer):
            raise ConfigError(
                f"algorithms.patch_dropout: takes a timm VisionTransformer, not {type(backbone).__name__}"
            )
        if not isinstance(backbone.patch_drop, nn.Identity):
            raise ConfigError(
                "algorithms.patch_dropout: the encoder has a patch_drop_rate already; remove it"
            )

        patches, most = backbone.patch_embed.num_patches, max(self.schedule.start, self.schedule.end)
        if most and left_over(patches, most) == patches:
            raise ConfigError(f"algorithms.patch_dropout: {most:g} of {patches} patches is none; raise rate")

    def prepare(self, model: Method) -> None:
        """Put the module into timm's place for it."""
        backbone = model.encoder.backbone
        self._keep = KeepPatches(backbone.num_prefix_tokens, partial(setattr, model, "kept_patches"))
        backbone.patch_drop = self._keep  # type: ignore[assignment]

    def set(self, model: Method, value: float) -> float:
        """Set the share."""
        assert self._keep is not None
        self._keep.rate = value
        return value


def left_over(patches: int, rate: float) -> int:
    """How many patches are left where a share is dropped."""
    return max(1, round(patches * (1 - rate)))


class KeepPatches(nn.Module):
    """Keeps a random part of the patch tokens in training, in their order, and reports which.

    Args:
        prefix: Leading tokens (class, registers) that always stay.
        report: Called in each forward with the kept patches' numbers [I, K'] or None for all.
    """

    def __init__(self, prefix: int, report: Callable[[Tensor | None], None]):
        super().__init__()
        self.prefix, self.report, self.rate = prefix, report, 0.0

    def forward(self, tokens: Tensor) -> Tensor:
        """[I, prefix + K, W] -> [I, prefix + K', W]."""
        images, length, width = tokens.shape
        patches = length - self.prefix
        count = left_over(patches, self.rate)
        if not self.training or count == patches:
            self.report(None)
            return tokens
        noise = torch.rand(images, patches, device=tokens.device)
        kept = noise.argsort(dim=1)[:, :count].sort(dim=1).values
        self.report(kept)
        rows = (kept + self.prefix).unsqueeze(-1).expand(-1, -1, width)
        return torch.cat([tokens[:, : self.prefix], tokens.gather(1, rows)], dim=1)
