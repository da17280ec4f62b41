"""Frozen features of labelled images: an ImageFolder, or shards of labelled documents."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder

from lcl_composer.data.document import Document
from lcl_composer.data.image import decode_image
from lcl_composer.data.labelled import class_name, count_labels
from lcl_composer.data.shards import open_shards, read_documents, read_shard
from lcl_composer.errors import ConfigError, DataError, one_line
from lcl_composer.evaluation.gather import gather_objects, world
from lcl_composer.evaluation.quiet import device_of, undisturbed
from lcl_composer.methods.method import Method
from lcl_composer.models.finite import check_finite

#: Which features an evaluation reads. ``patch_mean``: the mean of the encoder's patch tokens after its final
#: norm (width W, the encoder alone). ``pooled``: the attentive pooler's latent (width E), what L_con aligns.
FeatureKind = Literal["patch_mean", "pooled"]


#: Bytes of features that are held in memory; more lie in a temporary file that is mapped.
IN_MEMORY = 1 << 30


class LabelledShards(Dataset[tuple[Tensor, int]]):
    """Shards of labelled documents, with what torchvision's ImageFolder has: ``root``, ``classes``, items.

    A shard is in memory at a time: read in order, each is read once.

    Args:
        folder: With the index of the shards, as ``lcl convert imagefolder`` makes it.
        transform: RGB PIL image -> uint8 [3, H, W].

    Raises:
        DataError: If a shard is missing or damaged, or a document is no labelled image.
    """

    def __init__(self, folder: Path, transform: Callable) -> None:
        self.root, self.transform = str(folder), transform
        counts = count_labels(folder)
        self.classes = list(counts)
        self._shards = open_shards(folder)
        self._shards.check_whole()
        self._ends = np.cumsum([shard["samples"] for shard in self._shards.present])
        if others := len(self) - sum(counts.values()):
            raise DataError(
                f"{folder}: {others:,} of {len(self):,} documents are not one image and the name of its "
                "class, as lcl convert imagefolder makes; an evaluation takes labelled images alone"
            )
        self._numbers = {name: number for number, name in enumerate(self.classes)}
        self._held: tuple[int, list[Document | DataError]] = (-1, [])

    @cached_property
    def samples(self) -> list[tuple[str, int]]:
        """Id and class of every document; reads all shards once."""
        documents = read_documents(self._shards.folder)
        return [(document.id, self._numbers[class_name(document)]) for document in documents]

    @property
    def targets(self) -> list[int]:
        """Class of every document."""
        return [label for _, label in self.samples]

    def __len__(self) -> int:
        """How many documents there are."""
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image and the number of its class.

        Raises:
            DataError: If the document is damaged, or no labelled image.
        """
        shard = int(self._ends.searchsorted(index, side="right"))
        if self._held[0] != shard:
            self._held = shard, list(read_shard(self._shards.folder, self._shards.present[shard]))
        document = self._held[1][index - int(self._ends[shard])]  # from the end
        if isinstance(document, DataError):
            raise document
        label = self._numbers[class_name(document)]
        image = decode_image(document.images[0].data, f"document {document.id!r} of {self.root}")
        return self.transform(image), label


#: Labelled images by number: ``root``, ``classes``, and items of an image and the number of its class.
LabelledImages = ImageFolder | LabelledShards


def names_of_images(images: LabelledImages) -> list[str]:
    """A name of each image: its path in the folder, or the id of its document."""
    if isinstance(images, LabelledShards):
        return [name for name, _ in images.samples]
    return [str(Path(path).relative_to(images.root)) for path, _ in images.samples]


def open_image_folder(folder: str | Path, transform: Callable) -> LabelledImages:
    """Open ``folder/<class>/*.png|jpg|...``, or shards of labelled documents, and try a few of the images.

    Args:
        folder: Root of the tree, or where ``index.json`` of the shards is.
        transform: RGB PIL image -> uint8 [3, H, W], or whatever the encoder takes. Images are decoded as
            those of training documents are (transparent ones on white).

    Raises:
        DataError: If the folder is missing or holds no images in class folders, or the first of a class (of
            shards, the first of all) cannot be read.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder; an evaluation needs folder/<class>/<image> files")
    if (Path(folder) / "index.json").is_file():
        shards = LabelledShards(Path(folder), transform)
        shards[0]  # an image that cannot be read raises
        return shards
    try:
        images = ImageFolder(str(folder), transform, loader=_load)
    except (FileNotFoundError, RuntimeError) as error:
        raise DataError(
            f"{folder}: no image folder (folder/<class>/<image> files): {one_line(error)}"
        ) from error
    for path in {label: path for path, label in reversed(images.samples)}.values():
        _load(path)
    return images


def _load(path: str | Path) -> Image.Image:
    return decode_image(Path(path).read_bytes(), str(path))


def check_features(kind: FeatureKind, model: Method, asks: str) -> None:
    """Raise ConfigError if a method has no such features, before it is trained.

    Args:
        kind: Which features.
        model: The method.
        asks: The component that needs them, for the message.
    """
    if kind == "pooled" and not pools_images(model):
        name = type(model).__name__
        raise ConfigError(f"{asks}.features: pooled, but the method {name} has no pooler; use patch_mean")


def pools_images(model: Method) -> bool:
    """Whether a method's ``encode_images`` gives a latent."""
    return type(model).encode_images is not Method.encode_images or "pooler" in model.parts


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
    model: nn.Module, images: LabelledImages, *, kind: FeatureKind = "patch_mean", batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """Features and labels of every image, in the folder's order, without disturbing training.

    Each rank reads every W-th image; all ranks must call this together and all get the whole result. Beyond
    ``IN_MEMORY`` bytes the features are a map of a temporary file.

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
    whole, labels = torch.empty(0, 0), torch.empty(len(images), dtype=torch.int64)
    with undisturbed(model):
        batches = iter(DataLoader(shard, batch_size))
        for first in range(0, len(images), batch_size * world_size):
            mine = next(batches, None)
            if mine is not None:
                pooled, tokens = model.encode_images(mine[0].to(device_of(model)))  # type: ignore[operator]
                mine = (reduce_features(kind, pooled, tokens).float().cpu(), mine[1])
            for number, part in enumerate(gather_objects(mine)):
                if part is None:
                    continue
                check_finite(f"features of {images.root}", {kind: part[0]})
                if not len(whole):
                    whole = _rows(len(images), part[0].shape[1])
                places = slice(first + number, first + number + world_size * len(part[0]), world_size)
                whole[places], labels[places] = part
    return whole, labels


def _rows(count: int, width: int) -> Tensor:
    """Room for features [count, width] float32, on disk where they are many."""
    if 4 * count * width <= IN_MEMORY:
        return torch.empty(count, width)
    with tempfile.TemporaryFile() as file:  # the map keeps it until it is let go
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(count, width)))
