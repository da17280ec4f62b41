"""Links in a folder that was handed over: none may lead what reads the folder to files elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from lcl_composer.errors import DataError


@cache
def snapshot_blobs(folder: Path) -> Path | None:
    """Return where the links of a Hugging Face cache lead, for a folder in ``REPO/snapshots/REVISION``."""
    path = Path(os.path.abspath(folder))
    for revision in (path, *path.parents):
        blobs = revision.parent.parent / "blobs"
        if revision.parent.name == "snapshots" and blobs.is_dir():
            return blobs
    return None


def leads_out(path: Path, root: Path) -> bool:
    """Whether a file below ``root`` lies elsewhere, by a link on the way; a snapshot's blobs belong to it."""
    real = os.path.realpath(path)
    homes = [root, snapshot_blobs(root)]
    return not any(home and is_in(real, os.path.realpath(home)) for home in homes)


def is_in(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it, by their names alone."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def refuse_links(root: Path, paths: Iterable[Path]) -> None:
    """Refuse to read files of a folder through links that lead out of it.

    Raises:
        DataError: Names the first that does, and where it leads.
    """
    for path in paths:
        if leads_out(path, root):
            raise DataError(
                f"{path}: a link that leads out of {root}, to {os.path.realpath(path)}; if that is meant, "
                "name the place itself, or copy the folder with what its links lead to (cp -rL)"
            )


def links_out(root: Path) -> Iterator[Path]:
    """Yield the files and folders anywhere in a folder that are links out of it."""
    for here, folders, files in os.walk(root):
        folders.sort()
        paths = [Path(here, name) for name in sorted(folders + files)]
        yield from (path for path in paths if path.is_symlink() and leads_out(path, root))
