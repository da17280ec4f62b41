"""The samples of a tar: members that follow each other and differ in their suffix only, as in webdataset."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from lcl_composer.convert.files import is_litter, open_unzipped
from lcl_composer.convert.images import MAX_BYTES, SUFFIXES
from lcl_composer.convert.report import ConversionReport

#: Endings of a sample's members that are no images.
FACTS = (".json", ".txt")
#: What a damaged tar makes tarfile and the decompressors raise.
BROKEN = (OSError, EOFError, tarfile.TarError, ValueError, zlib.error)
_LONGEST_HEADER = 1 << 20
_UNSORTED = "its members stand apart: the tar is not sorted"


@dataclass
class Group:
    """The members of one sample.

    Attributes:
        key: Their name without the suffix.
        members: Content by suffix, lower case with the dot.
        problem: Why one of them cannot be used, or None.
        others: Suffixes of members that are not read.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    problem: str | None = None
    others: list[str] = field(default_factory=list)

    @property
    def images(self) -> list[str]:
        """The suffixes of its images."""
        return [suffix for suffix in self.members if suffix not in FACTS]

    def lack(self) -> str | None:
        """Say what it lacks to be a pair, or None."""
        if not self.images:
            return f"image of a format not read ({self.others[0]})" if self.others else "image missing"
        return None if any(suffix in self.members for suffix in FACTS) else "caption missing"


def tar_groups(path: Path, name: str, report: ConversionReport) -> Iterator[Group]:
    """Yield the samples of a tar, which may be compressed; each key once, with its problem if it has one.

    What lacks a part comes at the end: when the missing part stood elsewhere, the tar is not sorted. Only
    keys are held until then.

    Args:
        path: The tar.
        name: What the report calls it.
        report: Counts members that belong to no sample.

    Raises:
        OSError, EOFError, tarfile.TarError, ValueError, zlib.error: If it is broken, after the samples
            before the break; the last of them is handed out as cut off.
    """
    lacks: dict[str, str | None] = {}  # of every key so far; None where nothing is lacking
    broken: Exception | None = None
    try:
        for group in _runs(path, name, report):
            if group.key not in lacks:
                lacks[group.key] = None if group.problem else group.lack()
                if lacks[group.key] is None:
                    yield group
            elif lacks[group.key] is None:
                yield Group(group.key, problem="another sample of its name in the tar")
            else:
                lacks[group.key] = _UNSORTED
    except BROKEN as error:
        broken = error
    yield from (Group(key, problem=lack) for key, lack in lacks.items() if lack is not None)
    if broken is not None:
        raise broken


def _runs(path: Path, name: str, report: ConversionReport) -> Iterator[Group]:
    """Yield the runs of members of one key; that of a tar that breaks off, before the error goes on."""
    group = Group("")
    try:
        with open_unzipped(path) as file, _read_tar(file) as tar:
            for member in tar:
                key, suffix = _split(member.name)
                if not member.isdir() and not is_litter(member.name):
                    if group.key != key:
                        yield from _used(group)
                        group = Group(key)
                    if suffix in (*FACTS, *SUFFIXES):
                        _add(group, suffix, member, tar)
                    else:
                        group.others.append(suffix)
                        report.pass_over(f"{suffix or 'no suffix'} in a tar", f"{name}: {member.name[:200]}")
                # The tar would keep every header it has seen.
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
            _check_end(file, tar.offset)
    except BROKEN:
        group.problem = "cut off"
        yield from _used(group)
        raise
    yield from _used(group)


def _used(group: Group) -> Iterator[Group]:
    if group.members or (group.problem and group.key):
        yield group


class _Member(tarfile.TarInfo):
    """A member whose extended header, a long name or the like, is not read into memory at any length."""

    _EXTENDED = (
        tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )  # fmt: skip

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        """Called by ``tarfile`` for each header; raises ReadError where it would read without bound."""
        if self.type in self._EXTENDED and self.size > _LONGEST_HEADER:
            raise tarfile.ReadError("an extended header is too long")
        return super()._proc_member(tar)  # type: ignore[misc]


def _read_tar(file: gzip.GzipFile | BufferedReader) -> tarfile.TarFile:
    if isinstance(file, gzip.GzipFile):  # of a large block whose end is missing there would be nothing
        return tarfile.open(fileobj=file, mode="r:", tarinfo=_Member)
    return tarfile.open(fileobj=file, mode="r|", bufsize=1 << 20, tarinfo=_Member)


def _add(group: Group, suffix: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    if problem := _problem(member):
        group.problem = problem
    elif suffix in group.members or (suffix not in FACTS and group.images):
        group.problem = "several images or texts of one name in the tar"
    elif (file := tar.extractfile(member)) is not None:
        group.members[suffix] = file.read()


def _check_end(file: gzip.GzipFile | BufferedReader, offset: int) -> None:
    """Check that zeros and nothing else follow; Python takes a bad header for the end of the tar."""
    if isinstance(file, gzip.GzipFile):
        while file.read(1 << 20):  # raises where the stream is cut off
            pass
        return
    file.seek(offset)
    rest = file.read(1 << 16)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise tarfile.ReadError("ends in the middle")


def _split(name: str) -> tuple[str, str]:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.name else name, path.suffix.lower()


def _problem(member: tarfile.TarInfo) -> str | None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return "path climbs out of the folder"
    if not member.isreg():
        return "no regular file in the tar"
    return f"file over {MAX_BYTES >> 20} MiB" if member.size > MAX_BYTES else None
