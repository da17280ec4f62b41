from __future__ import annotations

import io
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms.functional import resized_crop

from lcl_composer.data import image as image_module
from lcl_composer.data.image import (
    CROP_RATIO,
    OPEN_CLIP,
    decode_image,
    decode_train_crop,
    draw_crop,
    eval_transform,
    train_transform,
)
from lcl_composer.errors import DataError


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(data: bytes) -> tuple[int, ...]:
    image = decode_image(data, "here")
    assert image.mode == "RGB"
    value = image.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


def test_rgb_is_exact():
    image = noise(7, 5)
    assert decode_image(encode(image), "here").tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_on_white(mode: str):
    assert pixel(encode(Image.new("RGBA", (2, 2), (0, 0, 0, 0)).convert(mode))) == (255, 255, 255)
    half = pixel(encode(Image.new("RGBA", (2, 2), (0, 0, 0, 128)).convert(mode)))
    assert half == (127, 127, 127)


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert pixel(encode(image)) == (10, 20, 30)
    assert pixel(encode(image, transparency=1)) == (255, 255, 255)
    assert pixel(encode(Image.new("RGB", (2, 2), (9, 9, 9)), transparency=(9, 9, 9))) == (255, 255, 255)


def test_16_bit_grey_is_scaled_not_clipped():
    assert pixel(encode(Image.fromarray(np.full((2, 2), 257 * 100, dtype=np.uint16)))) == (100, 100, 100)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 4095]], np.uint16), [0, 255]),  # 12 bits in 16
        (np.array([[0, 200]], np.uint16), [0, 200]),  # 8 bits in 16
        (np.array([[0, 1 << 30]], np.int32), [0, 255]),
        (np.array([[-1000, 0, 1000]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0]], np.float32), [0, 100]),
        (np.array([[-3.0, 0.0, 3.0]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, np.inf, 1.0]], np.float32), [0, 0, 255]),
        (np.array([[7000.0, 7000.0]], np.float32), [0, 0]),
    ],
)
def test_deep_grey_is_scaled_by_the_range_it_uses(values, expected):
    decoded = decode_image(encode(Image.fromarray(values), "TIFF"), "here")
    assert np.asarray(decoded)[0, :, 0].tolist() == expected


def test_a_png_with_a_large_profile_is_decoded():
    noise = np.random.default_rng(0).bytes(2 << 20)
    assert pixel(encode(Image.new("RGB", (2, 2), "red"), "PNG", icc_profile=noise)) == (255, 0, 0)


@pytest.mark.parametrize(("mode", "colour"), [("1", 1), ("L", 255), ("CMYK", (0, 0, 0, 0))])
def test_other_modes(mode: str, colour: int | tuple[int, ...]):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert pixel(encode(Image.new(mode, (2, 2), colour), kind)) == (255, 255, 255)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(data) == (255, 0, 0)


def test_exif_orientation_is_left_alone():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encode(noise(6, 4), "JPEG", exif=exif), "here").size == (6, 4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_images_are_named(kind: str):
    data = encode(noise(64, 64), kind)
    with pytest.raises(DataError, match=r"document 'a', image 3: cannot decode"):
        decode_image(data[: len(data) // 2], "document 'a', image 3")


@pytest.mark.parametrize("data", [b"", b"<html>not an image</html>", b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_no_image_are_named(data: bytes):
    with pytest.raises(DataError, match="here"):
        decode_image(data, "here")


def test_bombs_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_module, "MAX_PIXELS", 99)
    with pytest.raises(DataError, match="10 x 10 pixels are over the limit"):
        decode_image(encode(noise(10, 10)), "here")


sides = st.integers(1, 300)


@settings(max_examples=200, deadline=None)
@given(sides, sides, st.integers(0, 2**32))
def test_crop_lies_inside_with_the_drawn_area(width: int, height: int, seed: int):
    left, top, w, h = draw_crop(width, height, np.random.default_rng(seed))
    assert left >= 0
    assert top >= 0
    assert w > 0
    assert h > 0
    assert left + w <= width
    assert top + h <= height
    if min(width, height) > 50 and 0.8 < width / height < 1.25:
        assert 0.85 < w * h / (width * height) <= 1.0


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000)])
def test_a_narrow_image_gets_torchvisions_central_crop(width: int, height: int):
    blank = cast(Any, Image.new("RGB", (width, height)))
    top, left, h, w = RandomResizedCrop.get_params(blank, list(OPEN_CLIP.crop_scale), list(CROP_RATIO))
    assert draw_crop(width, height, np.random.default_rng(0)) == (left, top, w, h)


def test_crops_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    blank, rng = Image.new("RGB", (120, 100)), np.random.default_rng(0)
    theirs = np.array(
        [
            RandomResizedCrop.get_params(cast(Any, blank), list(OPEN_CLIP.crop_scale), list(CROP_RATIO))
            for _ in range(4000)
        ]
    )
    ours = np.array([draw_crop(120, 100, rng) for _ in range(4000)])[:, [1, 0, 3, 2]]
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.4)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.4)


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise whose amplitude falls with frequency as that of photographs does."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.normal(size=(height, width, 3)), axes=(0, 1))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / max(width, height)
    pixels = np.fft.irfft2(spectrum / frequency[..., None] ** 1.3, s=(height, width), axes=(0, 1))
    pixels = (pixels - pixels.mean()) / pixels.std() * 45 + 128
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def torchvisions_crop(image: Image.Image, size: int, seed: int) -> np.ndarray:
    left, top, w, h = draw_crop(image.width, image.height, np.random.default_rng(seed))
    crop = resized_crop(cast(Any, image), top, left, h, w, [size, size], InterpolationMode.BICUBIC)
    return np.asarray(crop).astype(int)


def difference(pixels: torch.Tensor, expected: np.ndarray) -> float:
    """Mean absolute difference in levels of 255."""
    assert pixels.dtype == torch.uint8
    return float(np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - expected).mean())


@pytest.mark.parametrize("size", [(90, 70), (40, 33), (300, 260)])
def test_train_transform_is_close_to_torchvisions_resized_crop(size: tuple[int, int]):
    image = photograph(*size)
    got = train_transform(image, 32, np.random.default_rng(5))
    assert got.shape == (3, 32, 32)
    expected = torchvisions_crop(image, 32, 5)
    assert difference(got, expected) < 4
    shifted = torchvisions_crop(image, 32, 6)
    assert difference(got, shifted) > 5


@pytest.mark.parametrize("size", [(512, 512), (512, 384), (300, 260), (1030, 1500), (2100, 1900), (97, 130)])
def test_a_crop_decoded_small_is_close_to_the_crop_of_the_whole(size: tuple[int, int]):
    data = encode(photograph(*size), "JPEG", quality=90)
    for seed in range(3):
        got = decode_train_crop(data, "here", 224, np.random.default_rng(seed))
        assert got.shape == (3, 224, 224)
        assert difference(got, torchvisions_crop(decode_image(data, "here"), 224, seed)) < 2


@pytest.mark.parametrize(("side", "shrink"), [(512, 2), (1024, 4), (2500, 8), (512 - 70, 1), (4500, 8)])
def test_a_jpeg_is_decoded_no_larger_than_needed_and_never_too_small(
    side: int, shrink: int, monkeypatch: pytest.MonkeyPatch
):
    sizes: list[tuple[int, int]] = []
    to_rgb = image_module._to_rgb
    monkeypatch.setattr(image_module, "_to_rgb", lambda image: sizes.append(image.size) or to_rgb(image))
    data = encode(Image.new("RGB", (side, side)), "JPEG")
    decode_train_crop(data, "here", 224, np.random.default_rng(1))
    assert sizes == [(-(-side // shrink), -(-side // shrink))]
    assert sizes[0][0] >= 224


def test_other_kinds_are_decoded_whole():
    image = photograph(512, 512)
    got = decode_train_crop(encode(image), "here", 64, np.random.default_rng(0))
    assert torch.equal(got, train_transform(image, 64, np.random.default_rng(0)))
    clear = Image.new("RGBA", (512, 512), (0, 0, 0, 0))
    assert (decode_train_crop(encode(clear), "here", 64, np.random.default_rng(0)) == 255).all()
    grey = decode_train_crop(encode(image.convert("L"), "JPEG"), "here", 64, np.random.default_rng(0))
    assert torch.equal(grey[0], grey[2])


def test_damaged_jpegs_are_named_when_cropped():
    data = encode(photograph(512, 512), "JPEG")
    with pytest.raises(DataError, match=r"document 'a', image 3: cannot decode"):
        decode_train_crop(data[: len(data) // 2], "document 'a', image 3", 224, np.random.default_rng(0))


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.sampled_from([16, 31, 64]))
def test_eval_transform_is_torchvisions(width: int, height: int, size: int):
    image = noise(width, height)
    if max(width, height) > 100 * min(width, height):
        with pytest.raises(DataError, match="too narrow"):
            eval_transform(image, size)
        return
    expected = CenterCrop(size)(Resize(size, InterpolationMode.BICUBIC)(image))
    np.testing.assert_array_equal(eval_transform(image, size).permute(1, 2, 0).numpy(), np.asarray(expected))
