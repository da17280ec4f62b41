"""The image that a table's cell stands for: bytes, a path, or a URL that was downloaded."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from lcl_composer.convert.files import inside
from lcl_composer.convert.images import ImageRules, Rejected, accept_image, read_image


def image_of(value: Any, folder: Path | None, rules: ImageRules) -> bytes:
    """Return the image of a cell.

    Args:
        value: Bytes; a struct with ``bytes`` and ``path``, as Hugging Face writes images; a path below the
            folder; or a URL, whose download is the file in the folder named by the SHA-256 of the URL.
        folder: The image folder, or None if there is none.
        rules: What the image must be like.

    Raises:
        Rejected: If there is no such image, or one the rules refuse.
    """
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return accept_image(value, rules)
    if not isinstance(value, str) or not value:
        raise Rejected("image missing")
    if folder is None:
        raise Rejected("no image folder given (--images)")
    name = sha256(value.encode("utf-8", "surrogatepass")).hexdigest() if "://" in value else value
    return read_image(inside(folder, name), rules)
