"""The image that a table's cell stands for: bytes, a path, or a URL that was downloaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from lcl_composer.convert.files import inside
from lcl_composer.convert.images import ImageRules, Rejected, accept_image, read_image
from lcl_composer.convert.pictures import from_base64, read_listed, read_picture

#: The Base64 of the bytes that JPEG, PNG, GIF, WebP, TIFF, BMP and AVIF files begin with.
_BASE64_IMAGE = re.compile(
    r"\s*([/_]9j[/_]|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK|Qk[0-3]|AAAA[\w+/-]{4}eXBhdm)[\w+/\s-]{40,}={0,2}\s*\Z",
    re.ASCII,
)


def image_of(value: Any, folder: Path | None, rules: ImageRules, starts: Sequence[str] = ("",)) -> bytes:
    """Return the image of a cell.

    Args:
        value: Bytes, or their Base64; a struct with ``bytes`` and ``path``, as Hugging Face writes images; a
            ``data:`` URL; a path as :func:`~lcl_composer.convert.pictures.read_listed` reads it; or a URL,
            whose download is the file in the folder named by the SHA-256 of the URL.
        folder: The image folder, or None if there is none.
        rules: What the image must be like.
        starts: Folders in it that paths may start from, likeliest first.

    Raises:
        Rejected: If there is no such image, or one the rules refuse.
    """
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return accept_image(value, rules)
    if not isinstance(value, str) or not value:
        raise Rejected("image missing")
    if _BASE64_IMAGE.match(value):
        return accept_image(from_base64(value.encode()), rules)
    if value.startswith("data:"):
        return read_picture(value, folder or Path(), rules)
    if folder is None:
        raise Rejected("no image folder given (--images)")
    if "://" in value and not value.startswith("file:"):
        name = sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        return read_image(inside(folder, name, links_into=rules.links_into), rules)
    return read_listed(value, folder, rules, starts)
