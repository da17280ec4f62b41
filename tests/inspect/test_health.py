"""Counts over a data set."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image as PILImage

from lcl_composer.inspect.duplicates import Duplicates
from lcl_composer.inspect.health import FATES
from tests.inspect.conftest import documents, encoded, viewer


def test_numbers_are_those_of_the_layouts(found):
    layouts = [viewer().view(document).layout for document in documents()]
    health = found.health
    assert health.documents == len(layouts)
    assert health.tokens.total == sum(len(layout.tokens) for layout in layouts)
    assert health.targets == sum(int((layout.targets >= 0).sum()) for layout in layouts)
    assert health.pairs.total == sum(int((layout.anchors >= 0).sum()) for layout in layouts)
    assert health.slots == sum(4 * int((layout.image_starts >= 0).sum()) for layout in layouts)
    assert health.cut_tokens == sum(layout.cut_tokens for layout in layouts)
    assert health.cut_documents == sum(layout.cut_tokens + layout.cut_images > 0 for layout in layouts)
    assert set(health.fates) <= set(FATES)
    assert health.fates.total() == health.images.total == 11
    assert health.fates["cut"] == sum(layout.cut_images for layout in layouts)
    assert health.fates["unused"] == 1
    assert dict(health.bad) == {"no text": 1, "an image cannot be decoded": 1}


def test_positions_add_up(found):
    """Text, slots and marks of images are all that runs."""
    tokenizer = viewer().tokenizer
    marks = [tokenizer.start_of_image, tokenizer.end_of_image]
    layouts = [viewer().view(document).layout for document in documents()]
    expected = sum(int(np.isin(layout.tokens, marks).sum()) for layout in layouts)
    fates = found.health.fates
    assert 2 * (fates["pair, read"] + fates["not anchored"]) + fates["pair, not read"] == expected


def noise(seed: int) -> PILImage.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return PILImage.fromarray(pixels).resize((200, 200), PILImage.Resampling.BICUBIC)


def data_of(image: PILImage.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_sizes_and_encodings_of_one_picture_are_duplicates():
    found = Duplicates()
    image = noise(1)
    for kind, side in (("PNG", 200), ("JPEG", 200), ("PNG", 150), ("PNG", 200)):
        data = data_of(image.resize((side, side), PILImage.Resampling.BICUBIC), kind)
        found.add("a", data, PILImage.open(BytesIO(data)).convert("RGB"))
    assert [(g.count, len(g.contents), g.documents) for g in found.groups()] == [(4, 3, {"a": 4})]
    assert (found.repeats, found.exact_repeats) == (3, 1)


def test_different_pictures_are_not():
    found = Duplicates()
    for seed in range(60):
        found.add(str(seed), str(seed).encode(), noise(seed))
    for colour in ("red", "green", "blue", "grey", "black", "orange"):  # alike but for their colour
        data = encoded(colour)
        found.add(colour, data, PILImage.open(BytesIO(data)).convert("RGB"))
    for place in (20, 60, 100):  # a small thing on an even ground
        image = PILImage.new("RGB", (200, 200), "white")
        image.paste("teal", (place, 90, place + 16, 106))
        found.add(f"at {place}", f"at {place}".encode(), image)
    assert found.groups() == []
