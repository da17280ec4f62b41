"""What code runs here: versions of packages, and a digest of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: Folder of this package.
PACKAGE = Path(__file__).parent


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the version of each package; None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def source_digest(*folders: Path) -> str:
    """Return a digest of the Python files of folders, their names and contents."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}\0"
            digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]
