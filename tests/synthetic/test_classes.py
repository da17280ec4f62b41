"""The labelled pictures of shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lcl_composer.synthetic.classes import probe_classes, write_probe_images
from lcl_composer.synthetic.scenes import COLOURS
from lcl_composer.synthetic.shapes import ShapesGenerator


def pictures(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.glob("*/*.png")}


def test_tree_has_every_class_in_both_splits_and_no_picture_twice(tmp_path):
    folder = tmp_path / "probe"
    write_probe_images(str(folder), train_per_class=4, val_per_class=2)
    for split, count in (("train", 4), ("val", 2)):
        assert sorted(path.name for path in (folder / split).iterdir()) == probe_classes()
        assert len(pictures(folder / split)) == count * len(probe_classes())
    trained_on = {image.data for d in ShapesGenerator(200).documents() for image in d.images}
    train, val = pictures(folder / "train"), pictures(folder / "val")
    assert not train & val
    assert not trained_on & (train | val)


def test_the_class_colour_covers_more_than_any_distractor_could(tmp_path):
    write_probe_images(str(tmp_path / "probe"), train_per_class=3, val_per_class=1)
    for path in (tmp_path / "probe" / "train").glob("*_square/*.png"):
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        areas = {name: int((np.abs(pixels - rgb).sum(axis=2) < 30).sum()) for name, rgb in COLOURS.items()}
        assert areas[path.parent.name.split("_")[0]] > 150


def test_an_existing_tree_is_kept_and_equal_seeds_draw_equal_pictures(tmp_path):
    for name in ("one", "two"):
        write_probe_images(str(tmp_path / name), train_per_class=1, val_per_class=1)
    assert pictures(tmp_path / "one" / "val") == pictures(tmp_path / "two" / "val")
    marker = tmp_path / "one" / "marker"
    marker.write_text("kept")
    write_probe_images(str(tmp_path / "one"), train_per_class=1, val_per_class=1)
    assert marker.exists()
