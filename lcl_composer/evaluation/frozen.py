"""Measure an exported encoder, frozen, on labelled images, beside the same encoder untrained."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lcl_composer.data.image import eval_transform
from lcl_composer.evaluation.features import FeatureKind, open_image_folder
from lcl_composer.evaluation.probe import ProbeResult, probe_model
from lcl_composer.export import load_encoder, untrained_encoder
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.pooler import AttentivePooler


class ImageSide(nn.Module):
    """Encoder and pooler with the interface that the evaluations ask for."""

    def __init__(self, encoder: Encoder, pooler: AttentivePooler | None):
        super().__init__()
        self.encoder, self.pooler = encoder, pooler

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor | None, Tensor]:
        """Pooled latents [I, E], None without a pooler, and patch tokens [I, K, W] of images [I, 3, H, W]."""
        tokens_IKW = self.encoder(pixel_values)
        return self.pooler(tokens_IKW) if self.pooler is not None else None, tokens_IKW


def evaluate_frozen(
    folder: str | Path, train: str, val: str, features: FeatureKind = "patch_mean"
) -> tuple[ProbeResult, ProbeResult]:
    """Linear probe of an exported encoder and of the same architecture with random weights (seed 0).

    Args:
        folder: What :func:`lcl_composer.export.export_encoder` wrote.
        train: ImageFolder to fit on.
        val: ImageFolder to measure on.
        features: ``patch_mean`` or ``pooled``.

    Returns:
        The trained encoder's result and the untrained one's.

    Raises:
        DataError: If the encoder or an image folder is missing or damaged.
    """
    trained = ImageSide(*load_encoder(folder))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = ImageSide(*untrained_encoder(folder))
    transform = partial(eval_transform, size=trained.encoder.image_size)
    folders = [open_image_folder(path, transform) for path in (train, val)]
    probed = [probe_model(side, *folders, features=features) for side in (trained, untrained)]
    return probed[0], probed[1]
