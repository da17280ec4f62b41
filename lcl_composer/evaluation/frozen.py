"""Measure an exported encoder, frozen, on labelled images, beside the same encoder untrained."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lcl_composer.data.image import eval_transform
from lcl_composer.evaluation.features import open_image_folder
from lcl_composer.evaluation.probe import ProbeResult, ProbeSettings, probe_model
from lcl_composer.export import load_encoder, untrained_encoder
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.pooler import AttentivePooler


class ImageSide(nn.Module):
    """Encoder and pooler with the interface that the evaluations ask for."""

    def __init__(self, encoder: Encoder, pooler: AttentivePooler):
        super().__init__()
        self.encoder, self.pooler = encoder, pooler

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled latents [I, E] and patch tokens [I, K, W] of images [I, 3, H, W]."""
        tokens_IKW = self.encoder(pixel_values)
        return self.pooler(tokens_IKW), tokens_IKW


def evaluate_frozen(folder: str | Path, settings: ProbeSettings) -> tuple[ProbeResult, ProbeResult]:
    """Linear probe of an exported encoder and of the same architecture with random weights (seed 0).

    Args:
        folder: What :func:`lcl_composer.export.export_encoder` wrote.
        settings: Image folders, features and batch size.

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
    train, val = (open_image_folder(path, transform) for path in (settings.train, settings.val))
    return probe_model(trained, train, val, settings), probe_model(untrained, train, val, settings)
