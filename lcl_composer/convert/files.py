"""Files of a source: in a fixed order, never outside it, lines of bounded length."""

from __future__ import annotations

import gzip
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

from lcl_composer.convert.images import Rejected
from lcl_composer.links import is_in, leads_out, snapshot_blobs

T = TypeVar("T")

#: A longer line is no record; reading it would cost a worker its memory.
MAX_LINE = 1 << 26

#: Folders that no one means: of other programs, beside hidden ones.
_LITTER = frozenset({"__MACOSX", "@eaDir"})
#: What macOS writes beside a file begins like this.
APPLE_DOUBLE = "._"
LINK = "links to folders (see --links-into)"
LINK_OUT = "links out of the folder (see --links-into)"
_CACHE = re.compile(r"cache-[0-9a-f]{16,}(_\d+_of_\d+)?\.arrow")
#: What ``wget`` leaves of a URL behind the name of a file.
_QUERY = re.compile(r"(?<=\w)\?\w+=.*$")


def walk(
    folder: Path, suffixes: frozenset[str], links_into: Path | None = None, root: Path | None = None
) -> Iterator[str]:
    """Yield the files with these suffixes (of :func:`suffix_of`) below a folder, by their path in it.

    Files come before sub-folders and both in order of their names. Hidden folders are not entered; links to
    folders are followed once, where they lead below ``links_into``; those to files where they lead below it
    or below ``root``, which is the folder if none is given. No more than the names of the folders on the way
    are held.
    """
    for name, problem in scan(folder, links_into, root):
        if problem is None and suffix_of(name) in suffixes:
            yield name


def scan(
    folder: Path, links_into: Path | None = None, root: Path | None = None
) -> Iterator[tuple[str, str | None]]:
    """Yield all below a folder in the order of :func:`walk`: a path, and None or why it is not looked at."""
    followed: set[Path] = set()
    stack = [""]
    while stack:
        here = stack.pop()
        try:
            with os.scandir(folder / here) as entries:
                found = sorted((e.name, e.is_dir(), e.is_symlink()) for e in entries)
        except PermissionError:
            if not here:
                raise
            yield here.rstrip("/"), "folders that may not be read"  # lost+found, of a disk
            continue
        inner = []
        copies = _copies([name for name, is_folder, _ in found if not is_folder])
        for name, is_folder, is_link in found:
            if name.startswith(APPLE_DOUBLE) and not is_folder:
                yield f"{here}{name}", "AppleDouble files"
            elif name in copies:
                yield f"{here}{name}", "caches of datasets"
            elif not is_folder:
                strange = is_link and _is_strange(folder / here / name, root or folder, links_into)
                yield f"{here}{name}", LINK_OUT if strange else None
            elif name.startswith(".") or name in _LITTER:
                yield f"{here}{name}", "hidden folders"
            elif is_link and not _may_follow(folder / here / name, links_into, followed):
                yield f"{here}{name}", LINK
            else:
                inner.append(f"{here}{name}/")
        stack.extend(reversed(inner))


def _copies(names: list[str]) -> frozenset[str]:
    """Return the files in which ``datasets`` keeps rows of the others in their folder anew, once mapped."""
    arrow = [name for name in names if name.endswith(".arrow")]
    copies = frozenset(filter(_CACHE.fullmatch, arrow))
    return copies if len(copies) < len(arrow) else frozenset()


def _is_strange(link: Path, root: Path, links_into: Path | None) -> bool:
    """Whether a link to a file leads neither into the root nor into where links may lead."""
    return all(leads_out(link, home) for home in (root, links_into) if home is not None)


def _may_follow(link: Path, links_into: Path | None, followed: set[Path]) -> bool:
    target = link.resolve()
    if links_into is None or not target.is_relative_to(links_into.resolve()) or target in followed:
        return False
    followed.add(target)
    return not link.parent.resolve().is_relative_to(target)  # a loop


def suffix_of(name: str) -> str:
    """Return the suffix of a file in lower case with its dot, both of a zipped one (``.csv.gz``).

    A query of a URL in the name (``a.jpg?w=640``) is no part of it.
    """
    base = name[name.rfind("/") + 1 :].lower()
    stem, dot, suffix = (_QUERY.sub("", base) if "?" in base else base).rpartition(".")
    if not dot or not stem.strip("."):  # none, or of a hidden file
        return ""
    return f"{os.path.splitext(stem)[1]}.gz" if suffix == "gz" else f".{suffix}"


def spellings(name: str) -> Iterator[str]:
    """Yield a name as it is, then with its accents composed (NFC) and taken apart (NFD)."""
    yield from dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)))


def open_unzipped(path: Path) -> gzip.GzipFile | BufferedReader:
    """Open a file that may be compressed by gzip, whatever it is called.

    Raises:
        OSError: If it cannot be opened.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else open(path, "rb")


def is_litter(name: str) -> bool:
    """Say whether a file is what macOS puts beside others (AppleDouble, ``__MACOSX``), which no one means."""
    return (
        os.path.basename(name).startswith(APPLE_DOUBLE)
        or name.startswith("__MACOSX/")
        or "/__MACOSX/" in name
    )


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def inside(root: Path, name: Any, base: Path | None = None, links_into: Path | None = None) -> Path:
    """Return the file that ``name`` stands for, seen from ``base`` (else from ``root``).

    Args:
        root: The folder that it must lie in.
        name: A path.
        base: Where a relative one starts.
        links_into: Links in ``root`` may lead into this folder; for a snapshot of the Hugging Face cache
            into its ``blobs`` in any case.

    Raises:
        Rejected: If the name is none, or leads out of ``root``: by ``..``, as an absolute path, or
            through a link.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise Rejected("no file name")
    try:
        lexical = os.path.join(base or root, name)
        path = _real_path(lexical)
        within = is_in(path, _real(root))
        if not within and (target := links_into or snapshot_blobs(root)):
            within = is_in(os.path.abspath(lexical), os.path.abspath(root)) and is_in(path, _real(target))
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long, half a character
        raise Rejected("file missing") from error
    if not within:
        raise Rejected("path climbs out of the folder")
    return Path(path)


def _real_path(path: str) -> str:
    """Return ``os.path.realpath``; where folders lead is looked up once, as pages show many files of one."""
    folder, name = os.path.split(path)
    if name in ("", os.curdir, os.pardir):
        return os.path.realpath(path)
    path = os.path.join(_real(folder), name)
    return os.path.realpath(path) if os.path.islink(path) else path


@lru_cache(maxsize=1 << 12)
def _real(folder: str | Path) -> str:
    return os.path.realpath(folder)


def forget_folders() -> None:
    """Look up anew where folders lead: the next conversion of a worker that stays may find other links."""
    _real.cache_clear()
    snapshot_blobs.cache_clear()


def read_lines(file: IO[bytes], first: int = 1) -> Iterator[tuple[int, bytes | Rejected]]:
    """Yield lines with their numbers; blank ones are skipped, one over ``MAX_LINE`` bytes is a Rejected."""
    number = first
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            yield number, Rejected(f"line over {MAX_LINE >> 20} MiB")
        elif line.strip():
            yield number, line
        number += 1


def parse_json(line: str | bytes) -> dict[str, Any]:
    """Return the JSON object of a line.

    Raises:
        Rejected: If it is cut in half or no object.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Rejected("not JSON, or cut off") from error
    if not isinstance(value, dict):
        raise Rejected("not a JSON object")
    return value
