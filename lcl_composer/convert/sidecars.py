"""Files that belong to a picture by their name: ``a.txt`` and ``a.json`` beside ``a.jpg``."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path

from lcl_composer.convert.files import spellings, suffix_of, walk
from lcl_composer.convert.images import SUFFIXES


def with_sidecars(
    root: Path, suffixes: tuple[str, ...], links_into: Path | None
) -> Iterator[tuple[str, list[str]]]:
    """Yield each picture below a folder, and the file that belongs to it for each of some suffixes.

    Such a file has the picture's name without its suffix or with it (``a.jpg.txt``); its own suffix may be in
    capitals, and accents composed or not. One that is missing is called as it would be first looked for.
    """
    for names in _folders(root, suffixes, links_into):
        for name in names:
            if suffix_of(name) in SUFFIXES:
                yield name, [_sidecar(name, suffix, names) for suffix in suffixes]


def lone_sidecars(root: Path, suffixes: tuple[str, ...], links_into: Path | None) -> Iterator[str]:
    """Yield the files with these suffixes that belong to no picture."""
    for names in _folders(root, suffixes, links_into):
        pictures = [name for name in names if suffix_of(name) in SUFFIXES]
        used = {_sidecar(picture, suffix, names) for picture in pictures for suffix in suffixes}
        yield from (name for name in names if suffix_of(name) in suffixes and name not in used)


def _folders(root: Path, suffixes: tuple[str, ...], links_into: Path | None) -> Iterator[dict[str, None]]:
    """Yield the names of the files of one folder at a time, in order."""
    for _, names in groupby(walk(root, SUFFIXES | {*suffixes}, links_into), os.path.dirname):
        yield dict.fromkeys(names)


def _sidecar(picture: str, suffix: str, names: Collection[str]) -> str:
    stem = os.path.splitext(picture)[0]
    if (first := stem + suffix) in names:
        return first
    folder = picture[: -len(os.path.basename(picture))]
    for base in (stem, picture):
        for spelling in spellings(base.removeprefix(folder)):
            for ending in (suffix, suffix.upper()):
                if (name := folder + spelling + ending) in names:
                    return name
    return first
