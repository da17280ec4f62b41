"""Which images enter a data set, and at what size."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lcl_composer.convert import images
from lcl_composer.convert.images import ImageRules, Rejected, accept_image, read_image
from lcl_composer.data.image import decode_image
from tests.convert.samples import picture


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM"])
def test_images_within_the_size_keep_their_bytes(kind):
    data = encode(gradient(90, 60), kind)
    for resize in (None, 90, 1000):
        assert accept_image(data, ImageRules(60, resize, True)) == data


@pytest.mark.parametrize(
    ("kind", "result"),
    [("JPEG", "JPEG"), ("WEBP", "WEBP"), ("PNG", "PNG"), ("BMP", "PNG"), ("MPO", "JPEG"), ("AVIF", "WEBP")],
)
def test_larger_ones_are_scaled_to_the_longest_side(kind, result):
    data = encode(gradient(600, 300), kind)
    small = Image.open(io.BytesIO(accept_image(data, ImageRules(1, 100, False))))
    assert (small.size, small.format) == ((100, 50), result)
    expected = np.asarray(gradient(600, 300).resize((100, 50), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(np.asarray(small.convert("RGB")).astype(int) - expected).mean() < 4


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_can_be_resized(mode):
    if mode in ("I;16", "F"):
        kind, top = (np.uint16, 65535) if mode == "I;16" else (np.float32, 1)
        image = Image.fromarray(np.linspace(0, top, 200 * 100).reshape(100, 200).astype(kind))
    else:
        image = gradient(200, 100).convert(mode)
    data = encode(image, {"CMYK": "JPEG", "F": "TIFF"}.get(mode, "PNG"))
    small = accept_image(data, ImageRules(1, 50, False))
    before = np.asarray(decode_image(data, "").resize((50, 25))).astype(int)
    after = np.asarray(decode_image(small, "")).astype(int)
    assert np.abs(before - after).mean() < 30


def test_transparency_is_kept_and_tags_are_not():
    image = gradient(200, 200)
    image.putalpha(0)
    small = Image.open(io.BytesIO(accept_image(encode(image, "PNG"), ImageRules(1, 20, False))))
    assert small.convert("RGBA").getextrema()[3] == (0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned on its side; the loader does not, so it must not be turned here either
    tagged = encode(gradient(200, 100), "JPEG", exif=exif, icc_profile=b"x" * 100)
    small = Image.open(io.BytesIO(accept_image(tagged, ImageRules(1, 20, False))))
    assert small.size == (20, 10)
    assert not small.getexif()
    assert "icc_profile" not in small.info


def test_a_cut_off_image_is_found_when_decoded():
    data = encode(gradient(400, 400), "JPEG")[:-500]
    assert accept_image(data, ImageRules(1, None, False)) == data
    for rules in (ImageRules(1, None, True), ImageRules(1, 50, False)):
        with pytest.raises(Rejected, match="broken or cut off"):
            accept_image(data, rules)


def test_large_profiles_and_texts_of_png_are_no_damage(monkeypatch):
    noise = np.random.default_rng(0).bytes(3 << 20)
    info = PngImagePlugin.PngInfo()
    info.add_text("note", noise.decode("latin-1"), zip=True)
    for data in (
        encode(gradient(90, 60), "PNG", icc_profile=noise),
        encode(gradient(90, 60), "PNG", pnginfo=info),
    ):
        assert accept_image(data, ImageRules(1, None, True)) == data
        monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 1 << 20)
        with pytest.raises(Rejected, match="a text or colour profile over 64 MiB"):
            accept_image(data, ImageRules(1, None, True))
        monkeypatch.undo()


def test_programs_are_not_run_on_postscript():
    with pytest.raises(Rejected, match="not a known image format"):
        accept_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", ImageRules(1, None, True))


def test_huge_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 1 << 20)
    with open(tmp_path / "huge.png", "wb") as file:
        file.write(picture())
        file.truncate((1 << 20) + 1)
    with pytest.raises(Rejected, match="file over 1 MiB"):
        read_image(tmp_path / "huge.png", ImageRules(1, None, False))


@pytest.mark.parametrize("mode", ["LAB", "CMYK"])
def test_every_kind_of_tiff_can_be_resized(mode):
    data = encode(Image.new(mode, (100, 50)), "TIFF")
    assert decode_image(accept_image(data, ImageRules(1, 50, False)), "").size == (50, 25)
