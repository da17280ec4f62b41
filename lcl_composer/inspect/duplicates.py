"""Which images occur more than once, byte for byte or to the eye."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from PIL import Image

from lcl_composer.inspect.pictures import data_uri, difference_hash, miniature

#: Differences of two miniatures, in levels of 255, up to which they count as one picture: on average, and of
#: any one value, so that a small thing elsewhere on an even ground is another picture.
_NEAR, _NEAR_ANYWHERE = 4.0, 48

#: Images a look-up compares with, for each quarter of the hash.
_MOST_RIVALS = 100

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
    """Groups images. Memory grows with the different ones among those it is given.

    Equal bytes are found for certain. Other sizes and encodings are looked for among images that share a
    quarter of the difference hash, which those that differ in up to three of its bits always do; the latest
    ``_MOST_RIVALS`` of them are compared.
    """

    def __init__(self) -> None:
        self._by_content: dict[bytes, Group] = {}
        self._by_quarter: dict[tuple[int, bytes], list[Group]] = {}
        self._all: list[Group] = []
        self.images = 0

    def add(self, document: str, data: bytes, image: Image.Image) -> None:
        """Take an image of a document: its encoded bytes, and its pixels in RGB."""
        content = blake2b(data, digest_size=16).digest()
        group = self._by_content.get(content) or self._look_alike(image)
        self._by_content[content] = group
        group.documents[document] = group.documents.get(document, 0) + 1
        group.contents.add(content)
        self.images += 1
        if group.count == 2:
            group.thumbnail = data_uri(image, _BOX)

    def _look_alike(self, image: Image.Image) -> Group:
        """Return the group that an image belongs to by its looks, a new one if there is none."""
        small, bits = miniature(image).astype(np.int16), difference_hash(image)
        quarters = [
            self._by_quarter.setdefault((place, bits[place : place + 2]), [])
            for place in range(0, len(bits), 2)
        ]
        for rivals in quarters:
            for group in rivals[-_MOST_RIVALS:]:
                difference = np.abs(small - group.miniature)
                if difference.max() <= _NEAR_ANYWHERE and difference.mean() <= _NEAR:
                    return group
        group = Group(small.astype(np.uint8))
        self._all.append(group)
        for rivals in quarters:
            rivals.append(group)
        return group

    def groups(self) -> list[Group]:
        """Return the images that occur more than once, the most frequent first."""
        found = [group for group in self._all if group.count > 1]
        return sorted(found, key=lambda group: (-group.count, min(group.documents)))

    @property
    def repeats(self) -> int:
        """Images that a data set without duplicates would not have."""
        return sum(group.count - 1 for group in self.groups())

    @property
    def exact_repeats(self) -> int:
        """Those among them that are equal byte for byte to an earlier one."""
        return sum(group.count - len(group.contents) for group in self.groups())
