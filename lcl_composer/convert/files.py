"""Files of a source: in a fixed order, never outside it, lines of bounded length."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

from lcl_composer.convert.images import Rejected

T = TypeVar("T")

#: A longer line is no record; reading it would cost a worker its memory.
MAX_LINE = 1 << 26


def walk(folder: Path, suffixes: frozenset[str]) -> Iterator[str]:
    """Yield the files with these suffixes (lower case, with the dot) below a folder, by their path in it.

    Files come before sub-folders and both in order of their names; links to folders are not followed. No
    more than the names of the folders on the way are held.
    """
    stack = [""]
    while stack:
        here = stack.pop()
        with os.scandir(folder / here) as entries:
            found = sorted((e.name, e.is_dir(follow_symlinks=False)) for e in entries)
        for name, is_folder in found:
            if not is_folder and os.path.splitext(name)[1].lower() in suffixes:
                yield f"{here}{name}"
        stack.extend(f"{here}{name}/" for name, is_folder in reversed(found) if is_folder)


def is_litter(name: str) -> bool:
    """Say whether a file is what macOS puts beside others (AppleDouble, ``__MACOSX``), which no one means."""
    return os.path.basename(name).startswith("._") or name.startswith("__MACOSX/") or "/__MACOSX/" in name


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def inside(root: Path, name: Any, base: Path | None = None) -> Path:
    """Return the file that ``name`` stands for, seen from ``base`` (else from ``root``).

    Raises:
        Rejected: If the name is none, or leads out of ``root``: by ``..``, as an absolute path, or
            through a link.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise Rejected("no file name")
    try:
        path = ((base or root) / name).resolve()
        within = path.is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long, half a character
        raise Rejected("file missing") from error
    if not within:
        raise Rejected("path climbs out of the folder")
    return path


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
