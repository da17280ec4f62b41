"""Which image files may enter a data set, judged by their headers."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

#: Formats the loader decodes. Pillow knows more, some of which run other programs (EPS) on the file.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".svg"})
#: More pixels than this are taken for a decompression bomb (Pillow warns from about here on, too).
MAX_PIXELS = 90_000_000


class ImageRejected(Exception):
    """An image is left out; the message is the reason it is counted under."""


def read_image(path: Path, min_side: int, verify: bool) -> bytes:
    """Return the bytes of an image file as they are.

    Args:
        path: An image file.
        min_side: Shortest side in pixels; images with a shorter one are refused.
        verify: Decode it all, which finds cut-off files. Otherwise only the header is read.

    Raises:
        ImageRejected: If it is no image that the loader could use.
    """
    if path.suffix.lower() in (".svg", ".svgz"):
        raise ImageRejected("vector graphics (SVG)")
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ImageRejected("file missing") from error
    except OSError as error:
        raise ImageRejected(f"file unreadable ({error.strerror})") from error
    if not data:
        raise ImageRejected("file empty")
    width, height = _size(data, verify)
    if min(width, height) < min_side:
        raise ImageRejected(f"a side under {min_side} px")
    return data


def _size(data: bytes, verify: bool) -> tuple[int, int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is judged below
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise ImageRejected(f"more than {MAX_PIXELS:,} pixels")
                if verify:
                    image.load()
    except ImageRejected:
        raise
    except Image.DecompressionBombError as error:
        raise ImageRejected(f"more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise ImageRejected("not a known image format") from error
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        raise ImageRejected("broken or cut off") from error
    return width, height
