"""Frozen features of a folder of labelled images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder

from lcl_composer.data.image import decode_image
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.evaluation.gather import gather_objects, world
from lcl_composer.evaluation.quiet import device_of, undisturbed
from lcl_composer.finite import check_finite

#: Which features an evaluation reads. ``patch_mean``: the mean of the encoder's patch tokens after its final
#: norm (width W, the encoder alone). ``pooled``: the attentive pooler's latent (width E), what L_con aligns.
FeatureKind = Literal["patch_mean", "pooled"]


def open_image_folder(folder: str | Path, transform: Callable) -> ImageFolder:
    """Open ``folder/<class>/*.png|jpg|...`` as a torchvision ImageFolder.

    Args:
        folder: Root of the tree.
        transform: RGB PIL image -> uint8 [3, H, W], or whatever the encoder takes. Images are decoded as
            those of training documents are (transparent ones on white).

    Raises:
        DataError: If the folder is missing or holds no images in class folders.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder; an evaluation needs folder/<class>/<image> files")
    try:
        return ImageFolder(str(folder), transform, loader=_load)
    except (FileNotFoundError, RuntimeError) as error:
        raise DataError(f"{folder}: no image folder (folder/<class>/<image> files): {error}") from error


def _load(path: str | Path) -> Image.Image:
    return decode_image(Path(path).read_bytes(), str(path))


def reduce_features(kind: FeatureKind, pooled: Tensor | None, tokens: Tensor) -> Tensor:
    """The chosen features [I, F] from pooled latents [I, E] and patch tokens [I, K, W].

    Raises:
        ConfigError: If the model pools nothing and ``kind`` is ``pooled``.
        ValueError: If ``kind`` is neither ``patch_mean`` nor ``pooled``.
    """
    if kind == "pooled":
        if pooled is None:
            raise ConfigError("features pooled: the method has no pooler; use patch_mean")
        return pooled
    if kind == "patch_mean":
        return tokens.mean(1)
    raise ValueError(f"unknown features {kind!r}; use patch_mean or pooled")


def extract_features(
    model: nn.Module, images: ImageFolder, *, kind: FeatureKind = "patch_mean", batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """Features and labels of every image, in the folder's order, without disturbing training.

    Each rank reads every W-th image; all ranks must call this together and all get the whole result.

    Args:
        model: Has ``encode_images(pixel_values) -> (pooled [I, E], tokens [I, K, W])``.
        images: Labelled images whose transform gives tensors of one shape.
        kind: Which features.
        batch_size: Images a forward.

    Returns:
        Features [N, F] float32 and labels [N] int64, on the CPU.

    Raises:
        DataError: On all ranks, if a feature is not finite.
    """
    rank, world_size = world()
    shard = Subset(images, range(rank, len(images), world_size))
    features, labels = [], []
    with undisturbed(model):
        for pixels, targets in DataLoader(shard, batch_size):
            pooled, tokens = model.encode_images(pixels.to(device_of(model)))  # type: ignore[operator]
            features.append(reduce_features(kind, pooled, tokens).float().cpu())
            labels.append(targets)
    parts = [part for part in gather_objects((features, labels)) if part[0]]
    whole = _interleave([torch.cat(f) for f, _ in parts])
    check_finite(f"features of {images.root}", {kind: whole})
    return whole, _interleave([torch.cat(y) for _, y in parts])


def _interleave(parts: list[Tensor]) -> Tensor:
    """Undo the sharding: row i of rank r is row ``i * W + r`` of the whole."""
    whole = torch.empty(sum(len(part) for part in parts), *parts[0].shape[1:], dtype=parts[0].dtype)
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole
