"""ImageNet and any other folder of class folders -> Documents for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from lcl_composer.convert.files import batched, inside, walk
from lcl_composer.convert.images import SUFFIXES, read_image
from lcl_composer.convert.report import ConversionReport
from lcl_composer.convert.source import Converted, Part, Rejected, Source
from lcl_composer.convert.text import display_name
from lcl_composer.data.document import Document, Image, Text

_PART_IMAGES = 1000
#: Folders that are splits, and what they are called in the data set.
_SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Source):
    """A folder of class folders, or ``train``, ``val`` (or ``validation``) and ``test`` folders of them.

    A document is the fixed image and the name of its class folder as the only text.

    Args:
        source: Folder with the class folders or the splits.
    """

    kind: ClassVar[str] = "imagefolder"
    has_splits: ClassVar[bool] = True
    labelled: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = SUFFIXES

    def _splits(self) -> list[str]:
        return [split for split in _SPLITS if (self.source / split).is_dir()]

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
            names = walk(self.source / split, SUFFIXES, self.links_into)
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
        document = Document(name, f"{self.source.name}/{name}", (image, Text(folders[0])))
        yield Converted(document, name, _SPLITS.get(split, "all"))
