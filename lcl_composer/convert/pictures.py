"""From what a page or a list calls an image to its bytes.

:func:`read_picture` is the one way from a reference to a picture: an ``src`` or ``href`` of a page and, where
no file has that very name, a path in a table or an annotation file (:func:`read_listed`). What a reference
may mean beyond one file (lazy loading, ``srcset``) is ``page_images``'s business.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

import numpy as np
from PIL import Image

from lcl_composer.convert.files import inside, spellings
from lcl_composer.convert.images import ImageRules, Rejected, accept_image, read_image
from lcl_composer.picture_formats import FORMATS

_URL_BREAKS = re.compile(r"[\t\r\n]")
_PLAIN_ALPHABET = bytes.maketrans(b"-_", b"+/")
#: A picture whose brightness, colour by colour, differs by no more than this shows nothing.
_BLANK_RANGE = 8


def read_listed(name: Any, root: Path, rules: ImageRules, folders: Sequence[str] = ("",)) -> bytes:
    """Return the image that a list calls by its path.

    Args:
        name: The path; the file of that very name comes before what it means as a URL.
        root: No image outside this folder is read.
        rules: What the image must be like.
        folders: Folders below ``root`` that the path may start in, likeliest first.

    Raises:
        Rejected: If there is no such image, or one the rules refuse.
    """
    bases = [root / folder for folder in folders]
    try:
        paths = (inside(root, name, base, rules.links_into) for base in bases)
        found = next(filter(os.path.isfile, paths), None)
    except Rejected as climbs:
        try:
            return read_picture(name, root, rules, bases)  # "/a.png" may be that of the root
        except Rejected:
            raise climbs from None
    return read_image(found, rules) if found is not None else read_picture(name, root, rules, bases)


def read_picture(reference: str, root: Path, rules: ImageRules, folders: Sequence[Path] = ()) -> bytes:
    """Return the image that a reference means.

    Args:
        reference: A relative URL, a path, or a ``data:`` URL. Of a path, the file with that very name and its
            query string comes before the one without, percent signs are decoded or not, backslashes are
            slashes, and accents may be composed or not.
        root: No image outside this folder is read; a path from ``/`` starts here, or else in the sub-folder
            of it that holds a folder. So does one of a ``file:`` URL, and one of an ``http:`` URL in the
            folder that is called like its host, as wget and others save sites.
        rules: What the image must be like.
        folders: Where relative paths may start, likeliest first; ``root`` by default.

    Raises:
        Rejected: If it means no such image, or one the rules refuse.
    """
    reference, url = _split(reference, root)
    if url.scheme == "data":
        return accept_image(_embedded(reference), rules)
    if not _is_here(url, root):
        raise Rejected("not a local file")
    if not url.path or "\0" in reference:
        raise Rejected("no src")
    paths = (
        inside(root, name, base, rules.links_into)
        for base in _bases(url, root, folders)
        for name in _names(url)
    )
    return read_image(_there(paths), rules)


@lru_cache(maxsize=1 << 14)  # pages of a site show the same pictures
def meant_files(reference: str, root: Path, folder: Path) -> tuple[str, ...]:
    """Return the files that a reference of a page in ``folder`` may mean, by their paths in ``root``."""
    try:
        _, url = _split(reference, root)
    except Rejected:
        return ()
    if not _is_here(url, root):
        return ()
    start = os.path.join(os.path.normpath(root), "")
    paths = (
        os.path.normpath(os.path.join(base, name))
        for base in _bases(url, root, [folder])
        for name in _names(url)
    )
    return tuple(path[len(start) :] for path in paths if path.startswith(start))


def _split(reference: str, root: Path) -> tuple[str, SplitResult]:
    """Return a reference without line breaks, and as a URL, which of a file has no scheme.

    Raises:
        Rejected: If it is none.
    """
    reference = _URL_BREAKS.sub("", reference.strip())
    try:
        url = urlsplit(reference)
    except ValueError as error:
        raise Rejected("src is no URL") from error
    if url.scheme == "file":
        url = url._replace(scheme="", netloc="", path=url.path.removeprefix(str(root.absolute())))
    return reference, url


def _there(paths: Iterator[Path]) -> Path:
    """Return the first that is a file, else the first."""
    first = next(paths, None)
    if first is None:
        raise Rejected("no src")
    return first if os.path.isfile(first) else next(filter(os.path.isfile, paths), first)


def from_base64(text: bytes) -> bytes:
    """Return what a text in Base64 stands for, in either alphabet, with or without line breaks and padding.

    Raises:
        Rejected: If it cannot be one.
    """
    digits = b"".join(text.split()).rstrip(b"=").translate(_PLAIN_ALPHABET)
    try:
        return base64.b64decode(digits + b"=" * (-len(digits) % 4))
    except (binascii.Error, ValueError) as error:
        raise Rejected("Base64 cut off") from error


def is_blank(data: bytes) -> bool:
    """Say whether an image is of one colour, like the placeholders of pages that load their images late."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            small = np.asarray(image.convert("RGBA").reduce(max(1, min(image.size) // 64)))
    except Exception:  # a broken file makes Pillow raise nearly anything; others judge that
        return False
    if small[..., 3].max() <= _BLANK_RANGE:
        return True  # transparent all over
    return bool((np.ptp(small, axis=(0, 1)) <= _BLANK_RANGE).all())


def _names(url: SplitResult) -> Iterator[str]:
    """Yield the file names that a reference may stand for, likeliest first."""
    query = f"?{url.query}" if url.query else ""
    fragment = f"#{url.fragment}" if url.fragment else ""
    seen: set[str] = set()
    encoded = url.path.encode("utf-8", "surrogatepass")  # perhaps with half a character
    unquoted = os.fsdecode(unquote_to_bytes(encoded))
    for path in (unquoted + query, url.path + query + fragment, unquoted, url.path):
        for name in spellings(path.replace("\\", "/").lstrip("/")):
            if name and name not in seen:
                seen.add(name)
                yield name


def _is_here(url: SplitResult, root: Path) -> bool:
    """Say whether a URL may mean a file below ``root``: it names no host, or one whose site lies there."""
    if not url.netloc:
        return not url.scheme
    return url.scheme in ("", "http", "https") and (_is_site(root, url) or os.path.isdir(root / url.netloc))


def _is_site(root: Path, url: SplitResult) -> bool:
    return os.path.basename(os.path.abspath(root)) == url.netloc


def _bases(url: SplitResult, root: Path, folders: Sequence[Path]) -> Iterator[Path]:
    if url.netloc:
        yield root if _is_site(root, url) else root / url.netloc
        return
    if not url.path.startswith(("/", "\\")):
        yield from folders or (root,)
        return
    yield root
    for folder in folders:  # wget and others save each site in a folder of its own
        first = folder.relative_to(root).parts[:1] if folder.is_relative_to(root) else ()
        if first:
            yield root / first[0]


def _embedded(reference: str) -> bytes:
    """Return the bytes in a ``data:`` URL."""
    head, comma, body = reference.partition(",")
    if not comma:
        raise Rejected("data: URL without data")
    if "image/svg" in head.lower():
        raise Rejected("vector graphics (SVG)")
    data = unquote_to_bytes(body)
    return from_base64(data) if head.lower().rstrip().endswith(";base64") else data
