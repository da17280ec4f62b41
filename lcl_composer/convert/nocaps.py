"""NoCaps -> Documents for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lcl_composer.convert.captioned import CaptionedSource
from lcl_composer.convert.files import batched
from lcl_composer.convert.karpathy import load_annotations
from lcl_composer.convert.source import Part, Rejected
from lcl_composer.errors import DataError

_PART_IMAGES = 1000


@dataclass(frozen=True, kw_only=True)
class NoCaps(CaptionedSource):
    """NoCaps' validation set: 10 captions an image; ids begin with the domain where the file names it.

    Args:
        source: Folder with the annotation file.
        images: Folder of the images; None for ``val`` in the source.
        annotations: Name of the annotation file in the source; None for the one ``nocaps*.json`` there is.
    """

    annotations: str | None = None

    kind: ClassVar[str] = "nocaps"
    image_folder: ClassVar[str] = "val"

    def parts(self) -> Iterator[Part]:
        """Yield images with their captions by the thousand."""
        file = self.annotations or self._only_file()
        facts = load_annotations(self.source / file, ("images", "annotations"))
        captions: dict[Any, list[Any]] = {}
        for entry in facts["annotations"]:
            if isinstance(entry, dict) and isinstance(entry.get("image_id"), int | str):
                captions.setdefault(entry["image_id"], []).append(entry.get("caption"))
        for number, batch in enumerate(batched(facts["images"], _PART_IMAGES)):
            items = [_facts(entry, captions) for entry in batch]
            yield Part(f"{file}:{number * _PART_IMAGES}", (file,), items)

    def _only_file(self) -> str:
        files = sorted(path.name for path in Path(self.source).glob("nocaps*.json"))
        if len(files) != 1:
            found = ", ".join(files) or "none"
            raise DataError(f"{self.source}: need one nocaps*.json, found {found}; name it with annotations")
        return files[0]

    def facts(self, record: Any) -> tuple[str, str, list[Any], str | None]:
        """Return id, image path, captions and no split of an image."""
        number, name, domain, captions = record
        if not isinstance(number, int | str) or not isinstance(name, str):
            raise Rejected("id or file_name missing")
        return f"{domain}/{number}" if isinstance(domain, str) else str(number), name, captions, None


def _facts(entry: Any, captions: dict[Any, list[Any]]) -> list[Any]:
    entry = entry if isinstance(entry, dict) else {}
    number = entry.get("id")
    found = captions.get(number, []) if isinstance(number, int | str) else []
    return [number, entry.get("file_name"), entry.get("domain"), found]
