"""What the machines of a conversion must have in common for its result to be that of one machine."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lcl_composer.convert.work import stamp
from lcl_composer.convert.worker import Job
from lcl_composer.errors import DataError
from lcl_composer.versions import PACKAGE, source_digest, versions_of

#: Packages that have a say in the bytes of the output.
_PACKAGES = (
    "lcl-composer", "mosaicml-streaming", "pillow", "pyarrow", "selectolax", "zstd",
    "webencodings", "chardetng-py", "ftfy", "regex", "tokenizers",
)  # fmt: skip
#: Files of a folder that are looked for on other machines, and entries among which they are chosen.
_WITNESSES, _ENTRIES = 3, 64


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the bytes of the output."""
    found = {name: version or "unknown" for name, version in versions_of(_PACKAGES).items()}
    return {"python": platform.python_version(), **found}


@dataclass(frozen=True)
class Home:
    """What the machine that plans a conversion sees, for those of the workers to compare.

    Attributes:
        token: A folder in the work folder that is there while the conversion runs; no other has its name.
        start: Where relative paths start, or None if all are absolute.
        versions: Of the packages, and the digest of the code.
        seen: Files and folders that the options name, with size and time or None for a folder.
    """

    token: Path
    start: Path | None
    versions: dict[str, str]
    seen: tuple[tuple[str, list[int] | None], ...]

    @classmethod
    def here(cls, job: Job, token: Path) -> Home:
        """Describe this machine."""
        paths = [path for path in _paths(job) if path.exists()]
        start = None if all(path.is_absolute() for path in (*paths, job.root)) else Path.cwd()
        seen = tuple(entry for path in paths for entry in _witnesses(path))
        return cls(token, start, _versions(), seen)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Take this process to where relative paths start, for the block.

        Raises:
            DataError: If the folder is not there.
        """
        before = os.getcwd()
        try:
            os.chdir(self.start or before)
        except OSError as error:
            raise _not_shared(self.start) from error
        try:
            yield
        finally:
            os.chdir(before)

    def check(self) -> None:
        """Refuse a machine that differs in what decides the output.

        Raises:
            DataError: If its packages are of other versions, or it does not see the work folder or the
                source, or sees others.
        """
        found = _versions()
        for name, expected in self.versions.items():
            if found.get(name) != expected:
                raise DataError(
                    f"{socket.gethostname()} has {name} {found.get(name)}, the machine that began the "
                    f"conversion {expected}; install the same on all"
                )
        if not self.token.is_dir():
            raise _not_shared(self.token.parents[2])
        for name, expected in self.seen:
            path = Path(name)
            if not path.exists() or (expected is not None and stamp(path) != expected):
                raise _not_shared(path)


def _not_shared(path: Path | None) -> DataError:
    return DataError(
        f"{socket.gethostname()} does not see {path} as the machine that began the conversion does; source, "
        "work folder and paths of options must lie on a file system that all machines share, at one path"
    )


def _versions() -> dict[str, str]:
    return {**package_versions(), "code of lcl-composer": source_digest(PACKAGE)}


def _paths(job: Job) -> Iterator[Path]:
    """Yield the source and the options that are paths, or name a file as ``tokenizer`` may."""
    yield job.source.source
    for name in sorted(job.source.options()):
        value: Any = getattr(job.source, name)
        if isinstance(value, Path) or (isinstance(value, str) and os.path.isfile(value)):
            yield Path(value)


def _witnesses(path: Path) -> Iterator[tuple[str, list[int] | None]]:
    """Yield a file, or a folder and the first files in it: where nothing is mounted, the folder is empty."""
    if path.is_file():
        yield str(path), stamp(path)
        return
    yield str(path), None
    with os.scandir(path) as entries:
        found = sorted(islice(entries, _ENTRIES), key=lambda entry: entry.name)
    files = [entry.path for entry in found if entry.is_file()]
    folders = [entry.path for entry in found if entry.is_dir()]
    for name in files[:_WITNESSES]:
        yield name, stamp(Path(name))
    if not files and folders:
        yield from _witnesses(Path(folders[0]))
