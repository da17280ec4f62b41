"""Labelled pictures of shapes, to measure an encoder by a linear probe."""

from __future__ import annotations

from pathlib import Path
from random import Random

from lcl_composer.data.folders import whole_folder
from lcl_composer.synthetic.scenes import COLOURS, SHAPES, draw_probe_scene, render


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
                _write_class(
                    partial / split / name, count, image_size, Random(f"probe/{seed}/{split}/{name}")
                )


def _write_class(place: Path, count: int, image_size: int, rng: Random) -> None:
    split, (colour, shape) = place.parent.name, place.name.split("_")
    place.mkdir(parents=True)
    for number in range(count):
        scene = draw_probe_scene(rng, f"probe_{split}", colour, shape)
        (place / f"{number:04d}.png").write_bytes(render(scene, image_size, rng))
