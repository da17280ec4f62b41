"""ImageNet and any other folder of class folders -> Documents for evaluation."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lcl_composer.convert.files import batched, inside, walk
from lcl_composer.convert.images import SUFFIXES, read_image
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted, Part, Rejected, Source
from lcl_composer.convert.text import display_name
from lcl_composer.data.document import Document, Image, Text

_PART_IMAGES = 1000
#: What folders that are splits are called, in any case, and what in the data set.
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Source):
    """A folder of class folders, or ``train``, ``val`` and ``test`` folders of them.

    A document is the fixed image and the name of its class folder as the only text. ``training``,
    ``validation``, ``valid``, ``dev`` and ``testing`` are splits too, in capitals or not, where folders lie
    in them: one that holds images only is a class.

    Args:
        source: Folder with the class folders or the splits.
        min_words: Classes whose names have fewer words are dropped; by default none, as ``+`` has none.
    """

    min_words: int = 0

    kind: ClassVar[str] = "imagefolder"
    has_splits: ClassVar[bool] = True
    labelled: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = SUFFIXES

    def _splits(self) -> list[str]:
        """Folders that are splits; where nothing but such folders is there, those without classes too."""
        folders = [path for path in self.source.iterdir() if path.is_dir()]
        found = [path for path in folders if path.name.lower() in _SPLITS]
        splits = [path for path in found if any(map(_is_class, path.iterdir()))]
        if not splits and len(found) == len(folders):
            splits = found
        return sorted((p.name for p in splits), key=lambda name: (list(_SPLITS).index(name.lower()), name))

    def survey(self, report: ConversionReport) -> None:
        """Count what is of no kind that is read, and images beside the folders of the splits."""
        super().survey(report)
        splits = self._splits()
        for name in walk(self.source, SUFFIXES, self.links_into) if splits else ():
            if name.split("/")[0] not in splits:
                report.pass_over(f"images outside of {', '.join(splits)}", display_name(name))

    def parts(self) -> Iterator[Part]:
        """Yield images by the thousand, split after split."""
        for split in self._splits() or [""]:
            names = walk(self.source / split, SUFFIXES, self.links_into, self.source)
            for images in batched((f"{split}/{name}".lstrip("/") for name in names), _PART_IMAGES):
                yield Part(images[0], tuple(images), split)

    def records(self, part: Part, report: ConversionReport) -> Iterator[tuple[str, tuple[str, str]]]:
        """Yield the images' splits and paths below the source."""
        return ((display_name(image), (part.items, image)) for image in part.files)

    def samples(self, name: str, record: tuple[str, str], report: ConversionReport) -> Iterator[Converted]:
        """Yield the document of an image."""
        split, path = record
        folders = display_name(path).split("/")[1 if split else 0 : -1]
        if not folders:
            raise Rejected("not in a class folder")
        image = Image(read_image(inside(self.source, path, links_into=self.links_into), self.rules))
        label = unicodedata.normalize("NFC", folders[0])  # macOS takes the accents of one split's names apart
        document = Document(name, f"{self.called}/{name}", (image, Text(label)))
        yield Converted(document, name, _SPLITS.get(split.lower(), "all"))


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")
