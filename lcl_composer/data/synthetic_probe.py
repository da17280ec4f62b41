"""Labelled pictures of shapes, to measure an encoder by a linear probe."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

from lcl_composer.data.synthetic_scenes import COLOURS, SHAPES, draw_probe_scene, render


def probe_classes() -> list[str]:
    """Return the 48 class names, colour and shape of the large object: ``blue_circle`` and so on."""
    return sorted(f"{colour}_{shape}" for colour in COLOURS for shape in SHAPES)


def write_probe_images(
    folder: str, *, image_size: int = 48, seed: int = 0, train_per_class: int = 20, val_per_class: int = 10
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
    target, partial = Path(folder), Path(f"{folder.rstrip('/')}.partial")
    if target.exists():
        return
    shutil.rmtree(partial, ignore_errors=True)
    for split, count in (("train", train_per_class), ("val", val_per_class)):
        for name in probe_classes():
            place = partial / split / name
            place.mkdir(parents=True)
            colour, shape = name.split("_")
            rng = Random(f"probe/{seed}/{split}/{name}")
            for number in range(count):
                scene = draw_probe_scene(rng, f"probe_{split}", colour, shape)
                (place / f"{number:04d}.png").write_bytes(render(scene, image_size, rng))
    partial.rename(target)
