"""COCO and Flickr30k in Karpathy's splits -> Documents for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lcl_composer.convert.captioned import CaptionedSource
from lcl_composer.convert.files import batched
from lcl_composer.convert.source import Part, Rejected
from lcl_composer.errors import DataError
from lcl_composer.json_data import load_json

_PART_IMAGES = 1000


def load_annotations(path: Path, lists: tuple[str, ...]) -> dict[str, list[Any]]:
    """Return an annotation file, which must be an object with these lists.

    Raises:
        DataError: If it is missing or cut off, or lacks one.
    """
    try:
        value = load_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; name the folder that holds it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON, or cut off ({error}); fetch it again") from error
    for name in lists:
        if not isinstance(value, dict) or not isinstance(value.get(name), list):
            raise DataError(f"{path}: holds no list {name!r}; this is not the annotation file")
    return value


@dataclass(frozen=True, kw_only=True)
class Karpathy(CaptionedSource):
    """An image set with several captions an image, split by Karpathy's ``dataset_<name>.json``."""

    file: ClassVar[str]
    has_splits: ClassVar[bool] = True

    def parts(self) -> Iterator[Part]:
        """Yield the entries of the annotation file by the thousand."""
        entries = load_annotations(self.source / self.file, ("images",))["images"]
        for number, batch in enumerate(batched(entries, _PART_IMAGES)):
            yield Part(f"{self.file}:{number * _PART_IMAGES}", (self.file,), [_facts(e) for e in batch])

    def facts(self, record: Any) -> tuple[str, str, list[Any], str | None]:
        """Return id, image path, captions and split of an entry."""
        split, number, folder, name, captions = record
        if not isinstance(split, str) or not split.isalnum():
            raise Rejected("split missing")
        if number is None or not isinstance(name, str):
            raise Rejected("imgid or filename missing")
        path = f"{folder}/{name}" if isinstance(folder, str) else name
        return f"{split}/{number}", path, captions, split


def _facts(entry: Any) -> list[Any]:
    entry = entry if isinstance(entry, dict) else {}
    sentences = entry.get("sentences")
    captions = [s.get("raw") for s in sentences if isinstance(s, dict)] if isinstance(sentences, list) else []
    number = entry.get("cocoid", entry.get("imgid"))
    return [entry.get("split"), number, entry.get("filepath"), entry.get("filename"), captions]


@dataclass(frozen=True, kw_only=True)
class Coco(Karpathy):
    """COCO captions, Karpathy's split: ``train``, ``restval``, ``val`` and ``test``, 5 to 7 captions each.

    Args:
        source: Folder with ``dataset_coco.json``.
        images: Folder with ``train2014`` and ``val2014``; None for the source.
    """

    kind: ClassVar[str] = "coco"
    file: ClassVar[str] = "dataset_coco.json"


@dataclass(frozen=True, kw_only=True)
class Flickr30k(Karpathy):
    """Flickr30k, Karpathy's split: ``train``, ``val`` and ``test``, 5 captions an image.

    Args:
        source: Folder with ``dataset_flickr30k.json``.
        images: Folder of the images; None for ``flickr30k-images`` in the source.
    """

    kind: ClassVar[str] = "flickr30k"
    file: ClassVar[str] = "dataset_flickr30k.json"
    image_folder: ClassVar[str] = "flickr30k-images"
