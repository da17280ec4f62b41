"""MMC4's shards: their files and names, the folders of their images."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

from lcl_composer.convert.files import is_litter, read_lines, suffix_of, walk
from lcl_composer.convert.images import SUFFIXES
from lcl_composer.convert.pictures import read_listed
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Part, Rejected, Source
from lcl_composer.convert.text import display_name
from lcl_composer.errors import ConfigError, DataError

#: As published, and as people rename them: ``0_v3.jsonl.zip``.
_SHARD = re.compile(r"(?:docs_)?(no_face_)?(?:shard_)?(\d+)_v([23])\.jsonl(\.zip)?")
_SHARDS = frozenset({".jsonl", ".zip"})
_VARIANTS = {
    ("", "2"): "full",
    ("", "3"): "core",
    ("no_face_", "2"): "fewer_faces",
    ("no_face_", "3"): "core_fewer_faces",
}
#: What zipfile raises at a damaged member; RuntimeError at one that is encrypted or oddly compressed.
_BROKEN = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)


@dataclass(frozen=True, kw_only=True)
class Shards(Source):
    """MMC4 in all published forms. Shards may be zipped or not, and their numbers may have gaps.

    Args:
        source: Folder with the shards (``docs_shard_0_v2.jsonl.zip``, ``docs_no_face_shard_0_v3.jsonl``,
            ``0_v3.jsonl.zip``), or the folder above it.
        images: Folder of the images, flat or in a folder a shard number or position; None for
            ``images`` in the source.
        variant: Which shards to read if the source holds several variants: ``full`` (v2), ``core`` (v3), and
            these with fewer faces (``no_face``).
        min_similarity: Images that match their sentence less are left out.
    """

    images: Path | None = None
    variant: Literal["full", "core", "fewer_faces", "core_fewer_faces"] | None = None
    min_similarity: float = 0.24
    max_images: int | None = None

    reads: ClassVar[frozenset[str]] = SUFFIXES | _SHARDS

    @property
    def _images(self) -> Path:
        return self.images if self.images is not None else self.source / "images"

    def check(self) -> None:
        """Look for the source and the image folder."""
        super().check()
        if self.max_images is not None and self.max_images < 1:
            raise ConfigError(f"max_images={self.max_images}; need 1 or more")
        if not self._images.is_dir():
            raise DataError(f"{self._images}: no such folder; set images to where the image files are")

    def survey(self, report: ConversionReport) -> None:
        """Count what is of no kind that is read, and what looks like a shard and was not read."""
        super().survey(report)
        read = {part.name for part in self.parts()}
        for name in walk(self.source, _SHARDS, self.links_into):
            if name not in read:
                known = _SHARD.fullmatch(Path(name).name)
                report.pass_over(
                    "shards of another variant, read already, or in a folder further down"
                    if known
                    else f"{suffix_of(name)} files of another name than a shard's",
                    display_name(name),
                )

    def parts(self) -> Iterator[Part]:
        """Yield the shards of one variant in the order of their numbers.

        Raises:
            DataError: If there are several variants, which hold the same documents, and none is chosen.
        """
        shards: dict[str, dict[int, str]] = {}
        for name in _shard_files(self.source, self._images):
            match = _SHARD.fullmatch(Path(name).name)
            assert match is not None
            found = shards.setdefault(_VARIANTS[match[1] or "", match[3]], {})
            if not (match[4] and int(match[2]) in found):  # unpacked beside its zip: the same documents
                found[int(match[2])] = name
        if self.variant is None and len(shards) > 1:
            raise DataError(
                f"{self.source}: holds the variants {', '.join(sorted(shards))} of the same documents; "
                "choose one with variant"
            )
        chosen = shards.get(self.variant, {}) if self.variant else next(iter(shards.values()), {})
        numbers = sorted(chosen)
        folders = range(len(numbers)) if self._by_position(numbers) else numbers
        for number, folder in zip(numbers, folders, strict=True):
            yield Part(chosen[number], (chosen[number],), folder)

    def _by_position(self, numbers: list[int]) -> bool:
        """Say whether the image folders are numbered through, as allenai's ``download_images.py`` does."""
        found = [int(path.name) for path in self._images.iterdir() if path.name.isdecimal() and path.is_dir()]
        return bool(found and numbers) and max(found) < len(numbers) <= numbers[-1]

    @property
    def looks_for(self) -> str:
        """The names of the shards."""
        return "docs_[no_face_]shard_<i>_v<2 or 3>.jsonl[.zip] or <i>_v<2 or 3>.jsonl[.zip]"

    def records(self, part: Part, report: ConversionReport) -> Iterator[tuple[str, Any]]:
        """Yield the lines of a shard."""
        stem = Path(part.name).name.split(".")[0]
        try:
            with open(self.source / part.name, "rb") as file:
                for number, line in _shard_lines(file, part.name, report):
                    yield f"{stem}/{number}", line if isinstance(line, Rejected) else (part.items, line)
        except _BROKEN as error:
            report.break_file(f"unreadable or cut off ({type(error).__name__})", part.name)

    def read_named(self, shard: int, name: str) -> bytes:
        """Return an image of a shard by its name, from the flat folder or the shard's own."""
        return read_listed(name, self._images, self.rules, (str(shard), ""))


def _shard_files(source: Path, images: Path) -> Iterator[str]:
    """Yield shard files in the folder and the folders in it, unpacked ones before zipped ones."""
    folders = [
        source,
        *sorted(path for path in source.iterdir() if path.is_dir() and path.resolve() != images.resolve()),
    ]
    for folder in folders:
        for path in sorted(folder.glob("*_v[23].jsonl*")):
            if _SHARD.fullmatch(path.name):
                yield path.relative_to(source).as_posix()


def _shard_lines(
    file: IO[bytes], name: str, report: ConversionReport
) -> Iterator[tuple[int, bytes | Rejected]]:
    if not name.endswith(".zip"):
        yield from read_lines(file)
        return
    with zipfile.ZipFile(file) as archive:
        members = [n for n in archive.namelist() if n.endswith(".jsonl") and not is_litter(n)]
        for member in members[:1]:  # a shard's zip holds the one file
            with archive.open(member) as lines:
                yield from read_lines(lines)
        for member in members[1:]:
            report.pass_over("further .jsonl files in a shard's zip", f"{name}: {member[:200]}")
        if not members:
            raise zipfile.BadZipFile("no .jsonl in it")
