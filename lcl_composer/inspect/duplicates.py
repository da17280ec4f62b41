"""Which images occur more than once, byte for byte or to the eye."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from PIL import Image

from lcl_composer.inspect.pictures import data_uri, difference_hash, miniature

#: Mean difference of two miniatures, in levels of 255, up to which they count as one picture.
_NEAR = 4.0

_BOX = (120, 90)


@dataclass(slots=True)
class Group:
    """Images that are one.

    Attributes:
        documents: Documents that hold it, by id, with how often.
        miniature: Of the first of them, uint8 [12, 12, 3].
        contents: Hashes of the bytes: more than one where it occurs in several encodings or sizes.
        thumbnail: Data URI, made when the second one is met.
    """

    miniature: np.ndarray
    documents: dict[str, int] = field(default_factory=dict)
    contents: set[bytes] = field(default_factory=set)
    thumbnail: str = ""

    @property
    def count(self) -> int:
        """How often it occurs."""
        return sum(self.documents.values())


class Duplicates:
    """Groups images by difference hash and miniature. Memory grows with the different images it is given."""

    def __init__(self) -> None:
        self._by_hash: dict[bytes, list[Group]] = {}
        self.images = 0

    def add(self, document: str, data: bytes, image: Image.Image) -> None:
        """Take an image of a document: its encoded bytes, and its pixels in RGB."""
        group = self._group(image)
        group.documents[document] = group.documents.get(document, 0) + 1
        group.contents.add(blake2b(data, digest_size=16).digest())
        self.images += 1
        if group.count == 2:
            group.thumbnail = data_uri(image, _BOX)

    def _group(self, image: Image.Image) -> Group:
        small = miniature(image)
        rivals = self._by_hash.setdefault(difference_hash(image), [])
        for group in rivals:
            if np.abs(small.astype(np.int16) - group.miniature).mean() <= _NEAR:
                return group
        rivals.append(Group(small))
        return rivals[-1]

    def groups(self) -> list[Group]:
        """Return the images that occur more than once, the most frequent first."""
        found = [group for rivals in self._by_hash.values() for group in rivals if group.count > 1]
        return sorted(found, key=lambda group: (-group.count, min(group.documents)))

    @property
    def repeats(self) -> int:
        """Images that a data set without duplicates would not have."""
        return sum(group.count - 1 for group in self.groups())

    @property
    def exact_repeats(self) -> int:
        """Those among them that are equal byte for byte to an earlier one."""
        return sum(group.count - len(group.contents) for group in self.groups())
