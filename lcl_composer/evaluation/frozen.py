"""Measure an encoder, frozen, on labelled images, beside the same encoder untrained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lcl_composer.data.image import eval_transform
from lcl_composer.evaluation.features import FeatureKind, open_image_folder
from lcl_composer.evaluation.probe import ProbeResult, probe_model
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.exported import architecture, load_encoder, untrained_encoder
from lcl_composer.models.pooler import AttentivePooler
from lcl_composer.registry import encoders


class ImageSide(nn.Module):
    """Encoder and pooler with the interface that the evaluations ask for."""

    def __init__(self, encoder: Encoder, pooler: AttentivePooler | None):
        super().__init__()
        self.encoder, self.pooler = encoder, pooler

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor | None, Tensor]:
        """Pooled latents [I, E], None without a pooler, and patch tokens [I, K, W] of images [I, 3, H, W]."""
        tokens_IKW = self.encoder(pixel_values)
        return self.pooler(tokens_IKW) if self.pooler is not None else None, tokens_IKW


@dataclass(frozen=True)
class Frozen:
    """Linear probes of an encoder.

    Attributes:
        description: What is read off it, see :attr:`lcl_composer.models.encoder.Encoder.description`.
        untrained: Of the same architecture with random weights (seed 0).
        trained: Of the encoder; None where it has random weights itself.
    """

    description: dict[str, Any]
    untrained: ProbeResult
    trained: ProbeResult | None


def evaluate_frozen(
    spec: Mapping[str, Any], train: str, val: str, features: FeatureKind = "patch_mean"
) -> Frozen:
    """Linear probe of an encoder and of the same one untrained.

    Args:
        spec: As ``model.encoder``; of an exported one the pooler is taken too.
        train: ImageFolder to fit on.
        val: ImageFolder to measure on.
        features: ``patch_mean`` or ``pooled``.

    Raises:
        ConfigError: If it cannot be built, or pools nothing and ``features`` is ``pooled``.
        DataError: If the encoder or an image folder is missing or damaged.
    """
    exported = spec["name"] == "exported"
    encoder, pooler = load_encoder(spec["folder"]) if exported else (encoders.build(spec).eval(), None)
    if exported:
        encoder.source = f"the exported {spec['folder']} ({encoder.source})"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recipe = architecture(encoder.recipe)
        twins = untrained_encoder(spec["folder"]) if exported else (encoders.build(recipe).eval(), None)
    transform = partial(eval_transform, size=encoder.image_size)
    folders = [open_image_folder(path, transform) for path in (train, val)]
    probe = partial(probe_model, features=features)
    return Frozen(
        description=encoder.description,
        untrained=probe(ImageSide(*twins), *folders),
        trained=probe(ImageSide(encoder, pooler), *folders) if encoder.weights else None,
    )
