"""Image bytes to pixels: decoding to RGB, and OpenCLIP's training and evaluation transforms."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from lcl_composer.errors import DataError
from lcl_composer.picture_formats import FORMATS, MAX_PIXELS

#: Bytes that a PNG's colour profile and texts may inflate to. Pillow's own limit of 1 MiB refuses printers'
#: profiles as if the image were broken; this one still keeps a bomb from a worker's memory.
MAX_METADATA = 1 << 26
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_METADATA

#: Aspect ratio of the training crop, as OpenCLIP's and torchvision's.
CROP_RATIO = (3.0 / 4.0, 4.0 / 3.0)


@dataclass(frozen=True)
class Augmentation:
    """How a training image is varied.

    Attributes:
        crop_scale: Smallest and largest share of the area that a crop takes; OpenCLIP's unless set.
        flip_probability: Chance that the crop is mirrored left to right.
    """

    crop_scale: tuple[float, float] = (0.9, 1.0)
    flip_probability: float = 0.0


#: OpenCLIP's, for pre-training: texts speak of left and right, so nothing is mirrored.
OPEN_CLIP = Augmentation()

#: Formats that the JPEG decoder reads; phones write the second, with further pictures behind the first.
JPEGS = ("JPEG", "MPO")

#: Longest side over shortest side that evaluation takes: resizing keeps the ratio, so it bounds the memory.
MAX_ASPECT_RATIO = 100


def decode_image(data: bytes, where: str) -> Image.Image:
    """Decode an image to RGB.

    Transparent images are laid on white, deep ones scaled to 8 bits (:func:`to_8_bits`); of an animation the
    first frame is taken. EXIF orientation is left alone, as OpenCLIP does, so that features agree with its.

    Args:
        data: The encoded bytes.
        where: The document and image, for messages.

    Raises:
        DataError: If the bytes are no image, truncated, or more than ``MAX_PIXELS``.
    """
    with _named(data, where):
        return _to_rgb(_open(data, where))


def decode_train_crop(
    data: bytes, where: str, size: int, rng: np.random.Generator, augmentation: Augmentation = OPEN_CLIP
) -> Tensor:
    """Decode just what OpenCLIP's training transform needs: a random crop, resized (bicubic).

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the crop still has ``size`` pixels a side (the
    decoder leaves out the high frequencies), and by whole factors what remains too large is averaged before
    the bicubic filter. Against the transform of the whole image, pixels of photographs differ by one or two
    levels of 255 on average (``benchmarks/loader.py`` measures it).

    Args:
        data: The encoded bytes.
        where: The document and image, for messages.
        size: Side of the output in pixels.
        rng: Draws the crop, as ``train_transform`` does, then whether it is mirrored.
        augmentation: What may be drawn.

    Returns:
        uint8 [3, size, size].

    Raises:
        DataError: If the bytes are no image, truncated, or more than ``MAX_PIXELS``.
    """
    with _named(data, where):
        image = _open(data, where)
        left, top, width, height = draw_crop(image.width, image.height, rng, augmentation.crop_scale)
        shrink = max(k for k in (1, 2, 4, 8) if k == 1 or min(width, height) >= k * size)
        shrink = _decode_smaller(image, shrink)
        box = (left / shrink, top / shrink, (left + width) / shrink, (top + height) / shrink)
        crop = _resize_crop(_to_rgb(image), box, size)
    return crop.flip(2) if rng.random() < augmentation.flip_probability else crop


def view_of(
    data: bytes, where: str, size: int, rng: np.random.Generator | None, augmentation: Augmentation
) -> Tensor:
    """What the model gets of an image: drawn by ``rng`` in training, the same each time without.

    Args:
        data: The encoded bytes.
        where: The document and image, for messages.
        size: Side of the output in pixels.
        rng: Draws the training view; None: the evaluation transform.
        augmentation: What may be drawn.

    Returns:
        uint8 [3, size, size].

    Raises:
        DataError: If the bytes are no image, truncated, or it is too large or too narrow.
    """
    if rng is None:
        return eval_transform(decode_image(data, where), size)
    return decode_train_crop(data, where, size, rng, augmentation)


def _open(data: bytes, where: str) -> Image.Image:
    """Read an image's header."""
    image = Image.open(BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{where}: {width} x {height} pixels are over the limit of {MAX_PIXELS}")
    return image


def _decode_smaller(image: Image.Image, shrink: int) -> int:
    """Have a JPEG decoded at 1 / ``shrink`` of its size; return the shrinkage that the decoder will apply."""
    if shrink == 1 or image.format not in JPEGS:
        return 1
    before = image.width
    image.draft(None, (image.width // shrink, image.height // shrink))
    return round(before / image.width)


@contextmanager
def _named(data: bytes, where: str) -> Iterator[None]:
    """Turn what a decoder raises into a DataError that names the image."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        kind = "no bytes" if not data else f"{type(error).__name__}: {error}".replace("\n", " ")
        kind = re.sub(r" <_io\.BytesIO object at 0x\w+>", "", kind)  # differs in each process
        raise DataError(f"{where}: cannot decode the image of {len(data)} bytes ({kind})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if is_deep(image):
        image = to_8_bits(image)
    elif image.has_transparency_data:
        colour = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(colour)
    return image.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Say whether an image is grey of 16 or 32 bits or of floats, which ``convert("RGB")`` would clip."""
    return image.mode.startswith(("I", "F"))


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale deep grey to 8 bits by the range it uses, so that it comes out neither black nor white.

    Whole numbers from 0 on are taken to have the least of 8, 10, 12, 14 or 16 bits that holds them (cameras
    and scanners write 12 into 16); floats up to 1, or up to 255, are taken as shares of that. All else goes
    from its least to its greatest value. What is not finite is black.
    """
    grey = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(grey.min()), float(grey.max())
    whole = [2**bits - 1 for bits in (8, 10, 12, 14, 16)]
    tops = [top for top in ([1, 255] if image.mode.startswith("F") else whole) if high <= top]
    bottom, top = (0.0, tops[0]) if low >= 0 and tops else (low, max(high, low + 1))
    return Image.fromarray(((grey - bottom) * (255 / (top - bottom))).round().astype(np.uint8))


def train_transform(image: Image.Image, size: int, rng: np.random.Generator) -> Tensor:
    """Return a random crop of 90 to 100% of the area, resized (bicubic): OpenCLIP's training transform.

    Args:
        image: An RGB image.
        size: Side of the output in pixels.
        rng: Draws the crop.

    Returns:
        uint8 [3, size, size].
    """
    left, top, width, height = draw_crop(image.width, image.height, rng)
    return _resize_crop(image, (left, top, left + width, top + height), size)


def _resize_crop(image: Image.Image, box: tuple[float, float, float, float], size: int) -> Tensor:
    """Resize a part of an image without copying it first; averages by whole factors before the filter."""
    return _to_tensor(image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=1.0))


def draw_crop(
    width: int, height: int, rng: np.random.Generator, scale: tuple[float, float] = OPEN_CLIP.crop_scale
) -> tuple[int, int, int, int]:
    """Draw a crop as torchvision's ``RandomResizedCrop`` does, from a NumPy generator.

    The share of the area is uniform in ``scale``, the logarithm of the aspect ratio in that of
    ``CROP_RATIO``; after ten draws that do not fit, the largest centred crop within the ratios is taken.

    Returns:
        Left, top, width and height in pixels.
    """
    low, high = (math.log(ratio) for ratio in CROP_RATIO)
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            return int(left), int(top), w, h
    ratio = min(max(width / height, CROP_RATIO[0]), CROP_RATIO[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    w, h = max(w, 1), max(h, 1)
    return (width - w) // 2, (height - h) // 2, w, h


def eval_transform(image: Image.Image, size: int) -> Tensor:
    """Return the shortest side resized to ``size`` (bicubic) and the centre cropped, as OpenCLIP evaluates.

    Args:
        image: An RGB image.
        size: Side of the output in pixels.

    Returns:
        uint8 [3, size, size].

    Raises:
        DataError: If one side is more than ``MAX_ASPECT_RATIO`` times the other.
    """
    short, long = sorted(image.size)
    if long > MAX_ASPECT_RATIO * short:
        raise DataError(f"image of {image.width} x {image.height} pixels is too narrow to resize and crop")
    resized_long = int(size * long / short)
    target = (size, resized_long) if image.width <= image.height else (resized_long, size)
    resized = image.resize(target, Image.Resampling.BICUBIC)
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    return _to_tensor(resized.crop((left, top, left + size, top + size)))


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
