"""The image that a table's cell stands for: bytes, a path, or a URL that was downloaded."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

from lcl_composer.convert.files import inside
from lcl_composer.convert.images import ImageRules, Rejected, accept_image, read_image
from lcl_composer.convert.pictures import read_picture


def image_of(value: Any, folder: Path | None, rules: ImageRules) -> bytes:
    """Return the image of a cell.

    Args:
        value: Bytes; a struct with ``bytes`` and ``path``, as Hugging Face writes images; a ``data:`` URL; a
            path below the folder, else one as :func:`~lcl_composer.convert.pictures.read_picture` reads it;
            or a URL, whose download is the file in the folder named by the SHA-256 of the URL.
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
    if value.startswith("data:"):
        return read_picture(value, folder or Path(), rules)
    if folder is None:
        raise Rejected("no image folder given (--images)")
    if "://" in value:
        name = sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        return read_image(inside(folder, name, links_into=rules.links_into), rules)
    path = inside(folder, value, links_into=rules.links_into)
    return read_image(path, rules) if os.path.isfile(path) else read_picture(value, folder, rules)
