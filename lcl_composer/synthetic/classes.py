"""Labelled pictures of shapes, to measure an encoder by a linear probe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.folders import whole_folder
from lcl_composer.errors import ConfigError
from lcl_composer.synthetic.scenes import COLOURS, SHAPES, draw_probe_scene, render

#: Raised whenever the same settings give other pictures.
_VERSION = 1


def probe_classes() -> list[str]:
    """Return the 48 class names, colour and shape of the large object: ``blue_circle`` and so on."""
    return sorted(f"{colour}_{shape}" for colour in COLOURS for shape in SHAPES)


def write_probe_images(
    folder: str, *, image_size: int = 48, seed: int = 0, train_per_class: int = 60, val_per_class: int = 20
) -> None:
    """Write an ImageFolder tree ``train/<class>/*.png`` and ``val/<class>/*.png``, unless it is there.

    The class is the colour and shape of the one large object; its place, the background and two groups of
    small objects in other colours vary. The scenes of train, val and of the documents to train on share no
    combination of attributes.

    Args:
        folder: Where to write; written beside it first and moved in place at the end.
        image_size: Side of the pictures in pixels.
        seed: Other seeds give other pictures.
        train_per_class: Pictures a class to fit the probe on.
        val_per_class: Pictures a class to measure it on.
    """
    target = Path(folder)
    if target.exists():
        return
    with whole_folder(target) as partial:
        for split, count in (("train", train_per_class), ("val", val_per_class)):
            for name in probe_classes():
                place = partial / split / name
                place.mkdir(parents=True)
                for number, data in enumerate(_pictures(split, name, count, image_size, seed)):
                    (place / f"{number:04d}.png").write_bytes(data)


def _pictures(split: str, name: str, count: int, image_size: int, seed: int) -> Iterator[bytes]:
    """Draw the pictures of a class."""
    rng, (colour, shape) = Random(f"probe/{seed}/{split}/{name}"), name.split("_")
    for _ in range(count):
        yield render(draw_probe_scene(rng, f"probe_{split}", colour, shape), image_size, rng)


class ShapesClasses:
    """The labelled pictures of the probe as documents: a picture and the name of its class.

    Args:
        per_class: Pictures a class; there are 48 classes.
        image_size: Side of the pictures in pixels.
        seed: Other seeds give other pictures.
        split: ``train`` or ``val``.

    Raises:
        ConfigError: If a setting is out of range.
    """

    def __init__(self, per_class: int, image_size: int = 48, seed: int = 0, split: str = "train") -> None:
        if split not in ("train", "val") or per_class < 1 or image_size < 16:
            raise ConfigError(
                f"shapes_classes: split={split!r}, per_class={per_class}, image_size={image_size}; need "
                "'train' or 'val', per_class >= 1, image_size >= 16"
            )
        self.per_class, self.image_size, self.seed, self.split = per_class, image_size, seed, split

    def __len__(self) -> int:
        """How many documents it makes."""
        return self.per_class * len(probe_classes())

    def settings(self) -> dict[str, Any]:
        """All that the documents depend on, as JSON values."""
        own = {"split": self.split, "per_class": self.per_class}
        return {"generator": "shapes_classes", **self.probe_settings(), **own}

    def documents(self) -> Iterator[Document]:
        """Yield the documents, class by class."""
        for name in probe_classes():
            pictures = _pictures(self.split, name, self.per_class, self.image_size, self.seed)
            for number, data in enumerate(pictures):
                source = f"generated shapes, seed {self.seed}"
                yield Document(f"{self.split}-{name}-{number:04d}", source, (Image(data), Text(name)))

    def texts(self) -> Iterator[str]:
        """Yield the names of the classes."""
        yield from probe_classes()

    def text_settings(self) -> dict[str, Any]:
        """All that :meth:`texts` depend on, as JSON values."""
        return {"generator": "shapes_classes", "version": _VERSION}

    def probe_settings(self) -> dict[str, Any]:
        """All that the probe's pictures depend on, as JSON values."""
        return {"version": _VERSION, "image_size": self.image_size, "seed": self.seed}

    def write_probe(self, folder: str) -> None:
        """Write the pictures as ImageFolders, see :func:`write_probe_images`."""
        write_probe_images(folder, image_size=self.image_size, seed=self.seed)
