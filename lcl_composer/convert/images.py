"""Which image files may enter a data set, judged by their headers, and their size in it."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

from lcl_composer.data.image import JPEGS, MAX_METADATA, is_deep, to_8_bits
from lcl_composer.picture_formats import FORMATS, MAX_PIXELS

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".svg",
})  # fmt: skip
#: A larger file is no picture of a web page; reading it would cost a worker its memory.
MAX_BYTES = 1 << 28
_QUALITY = 95
#: What a smaller image is written as; all else is PNG.
_LOSSY = {"JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WEBP", "AVIF": "WEBP"}


class Rejected(Exception):
    """A document or an image is left out; the message is the reason it is counted under."""


@dataclass(frozen=True, slots=True)
class ImageRules:
    """What an image must be like.

    Attributes:
        min_side: Shortest side in pixels; images with a shorter one are refused.
        resize: Longest side in pixels, to which larger images are scaled down, or None.
        verify: Decode it all, which finds cut-off files. Otherwise only the header is read.
        links_into: Folder that links among the images may lead into, or None.
    """

    min_side: int
    resize: int | None
    verify: bool
    links_into: Path | None = None


def read_image(path: Path, rules: ImageRules) -> bytes:
    """Return the bytes of an image file as they are, or of the smaller image if it is to be resized.

    Raises:
        Rejected: If it is no image that the loader could use, or one the rules refuse.
    """
    if path.suffix.lower() in (".svg", ".svgz"):
        raise Rejected("vector graphics (SVG)")
    return accept_image(read_file(path), rules)


def read_file(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        Rejected: If there is no such file, or it cannot be read, or is larger than ``MAX_BYTES``.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Rejected(f"file over {MAX_BYTES >> 20} MiB")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError) as error:
        raise Rejected("file missing") from error
    except OSError as error:
        raise Rejected(f"file unreadable ({error.strerror})") from error


def accept_image(data: bytes, rules: ImageRules) -> bytes:
    """Return the bytes of an image as they are, or of the smaller image if it is to be resized.

    Raises:
        Rejected: If it is no image that the loader could use, or one the rules refuse.
    """
    if not data:
        raise Rejected("file empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is judged below
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _judge(image, data, rules)
    except Rejected:
        raise
    except Image.DecompressionBombError as error:
        raise Rejected(f"more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise Rejected("not a known image format") from error
    except ValueError as error:
        too_large = "too large" in str(error) or "Too much memory" in str(error)
        what = f"a text or colour profile over {MAX_METADATA >> 20} MiB"
        raise Rejected(what if too_large else "broken or cut off") from error
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        raise Rejected("broken or cut off") from error


def _judge(image: Image.Image, data: bytes, rules: ImageRules) -> bytes:
    if image.width * image.height > MAX_PIXELS:
        raise Rejected(f"more than {MAX_PIXELS:,} pixels")
    if min(image.size) < rules.min_side:
        raise Rejected(f"a side under {rules.min_side} px")
    if rules.resize is not None and max(image.size) > rules.resize:
        return _shrink(image, rules.resize)
    if rules.verify:
        image.load()
    return data


def _shrink(image: Image.Image, longest: int) -> bytes:
    """Scale down and encode as ``_LOSSY`` says; orientation tags are not kept."""
    kind = _LOSSY.get(image.format or "", "PNG")
    scale = longest / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if image.format in JPEGS and isinstance(image, ImageFile.ImageFile):
        image.draft(None, size)  # decodes at a half, a quarter or an eighth where that suffices
    if is_deep(image):
        image = to_8_bits(image)
    elif image.mode not in ("L", "RGB", "RGBA") or "transparency" in image.info:  # LAB and others no PNG
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    buffer = io.BytesIO()
    # Without this, Pillow writes an image's colour profile and tags along.
    image.resize(size, Image.Resampling.LANCZOS).save(
        buffer, kind, **({} if kind == "PNG" else {"quality": _QUALITY}), icc_profile=None, exif=b""
    )
    return buffer.getvalue()
