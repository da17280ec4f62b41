"""Labels are documents too: one image, and the name of its class as the only text."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np

from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.folders import whole_file
from lcl_composer.data.interleave import TokenLayout
from lcl_composer.data.shards import open_shards, read_outlines
from lcl_composer.data.sources import CLASSES_FILE
from lcl_composer.errors import DataError
from lcl_composer.json_data import load_json

#: Mean words above which texts that stand at one image each are captions, not names of classes.
_SENTENCE = 4
#: Characters of a name that a message shows.
_LONGEST_SHOWN = 40

_FILLERS = re.compile(r"[\s_.,'’-]+")


def class_name(document: Document) -> str:
    """The name of the class of a labelled image.

    Raises:
        DataError: If the document is not one image and one text.
    """
    texts = [segment.text for segment in document.segments if isinstance(segment, Text)]
    if len(document.images) != 1 or len(texts) != 1 or not texts[0]:
        raise DataError(
            f"document {document.id!r}: {len(document.images)} images and {len(texts)} texts, not one image "
            "and the name of its class, as lcl convert imagefolder makes"
        )
    return texts[0]


@dataclass(frozen=True)
class Labelled:
    """One image, and one token whose target is the number of its class.

    Attributes:
        classes: Names of the classes in the order of their numbers.
    """

    classes: tuple[str, ...]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Number of each class."""
        return {name: number for number, name in enumerate(self.classes)}

    def __call__(self, document: Document, rng: np.random.Generator) -> TokenLayout:
        """Lay out a labelled image.

        Raises:
            DataError: If it is none, or of a class that training does not have.
        """
        name = class_name(document)
        if name not in self.numbers:
            raise DataError(f"document {document.id!r}: training has no class {_short(name)!r}")
        none = np.array([-1])
        return TokenLayout(
            tokens=np.zeros(1, dtype=np.int64),
            targets=np.array([self.numbers[name]], dtype=np.int64),
            images=np.zeros(1, dtype=np.int64),
            image_starts=none,
            anchors=none,
            cut_tokens=0,
            cut_images=0,
        )

    def full_document(self) -> Document:
        """An image of a class: any."""
        return Document("full", "made up", (Image(b""), Text(self.classes[0])))


def count_classes(folder: Path) -> dict[str, int]:
    """How many documents of a data set each class has, sorted by name.

    They are counted once, without reading images, and the counts are kept beside the index where the folder
    can be written to. Documents that are no labelled images are left out: they are bad samples later.

    Raises:
        DataError: If there is no data set, or a shard is damaged or not here.
    """
    digest = _index_digest(folder)
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        known = load_json((folder / CLASSES_FILE).read_text(encoding="utf-8"))
        if known["index"] == digest:
            return {str(name): int(count) for name, count in known["classes"].items()}
    shards = open_shards(folder)
    shards.check_whole()
    counts = Counter(
        texts[0]
        for shard in shards.present
        for texts, images in read_outlines(folder, shard)
        if len(texts) == images == 1 and texts[0]
    )
    with suppress(OSError):
        write_classes(folder, counts)
    return dict(sorted(counts.items()))


def count_labels(folder: Path) -> dict[str, int]:
    """The same counts, of documents whose texts are names of classes.

    Raises:
        DataError: If they are captions: sentences, most of which stand at one image alone.
    """
    counts = count_classes(folder)
    once = [name for name, count in counts.items() if count == 1]
    words = sum(len(name.split()) for name in once)
    if 2 * len(once) > sum(counts.values()) and words > _SENTENCE * len(once):
        raise DataError(
            f"{folder}: its texts are captions ({_short(once[0])!r}), not names of classes: {len(counts):,} "
            f"of {sum(counts.values()):,} images; classify takes what lcl convert imagefolder makes, and of "
            "these retrieve or caption can learn"
        )
    return counts


def write_classes(folder: Path, counts: Mapping[str, int]) -> None:
    """Keep beside an index how many documents each class has.

    Raises:
        OSError: If the folder cannot be written to.
    """
    kept = {"index": _index_digest(folder), "classes": dict(sorted(counts.items()))}
    with whole_file(folder / CLASSES_FILE) as partial:
        partial.write_text(json.dumps(kept, ensure_ascii=False, indent=1), encoding="utf-8")


def _index_digest(folder: Path) -> str:
    index = folder / "index.json"
    return hashlib.sha256(index.read_bytes()).hexdigest() if index.is_file() else ""


def classes_of(train: Iterable[Path], held_out: Iterable[Path] = ()) -> tuple[str, ...]:
    """The classes of a training set, sorted by name: the order of their numbers.

    Args:
        train: Folders of its shards.
        held_out: Folders of the set to measure on.

    Raises:
        DataError: If there are fewer than two, the two sets differ in them, or two folders of the training
            set spell one differently.
    """
    train, held_out = list(train), list(held_out)
    of_folder = {str(folder): set(count_labels(folder)) for folder in train}
    for (one, ours), (other, theirs) in combinations(of_folder.items(), 2):
        _check_spelling((one, ours), (other, theirs))
    names = sorted(set().union(*of_folder.values()))
    where = ", ".join(of_folder)
    if len(names) < 2:
        raise DataError(
            f"{where}: {len(names)} classes; classification needs two at least, of documents that are one "
            "image and the name of its class, as lcl convert imagefolder makes"
        )
    if held_out:
        others = {name for folder in held_out for name in count_classes(folder)}
        check_same_classes((where, names), (", ".join(map(str, held_out)), others))
    return tuple(names)


def check_same_classes(train: tuple[str, Iterable[str]], held_out: tuple[str, Iterable[str]]) -> None:
    """Refuse two sets whose labels would not mean the same.

    Args:
        train: Where one lies, and the names of its classes.
        held_out: The same of the other.

    Raises:
        DataError: If they differ in the names.
    """
    (first, ours), (second, theirs) = ((where, set(names)) for where, names in (train, held_out))
    if ours == theirs:
        return
    _check_spelling((first, ours), (second, theirs))
    odd = sorted(ours ^ theirs)
    raise DataError(
        f"{first} and {second} differ in the classes {', '.join(map(_short, odd[:5]))}"
        f"{f' and {len(odd) - 5} more' if len(odd) > 5 else ''}; give both the same classes"
    )


def _check_spelling(one: tuple[str, set[str]], other: tuple[str, set[str]]) -> None:
    """Refuse a class that each of two sets has under a name of its own, such as "Cat" and "cat"."""
    (first, ours), (second, theirs) = one, other
    spelled = {_plain(name): name for name in ours - theirs}
    for name in sorted(theirs - ours):
        if _plain(name) in spelled:
            mine = spelled[_plain(name)]
            raise DataError(
                f"{second} calls a class {_short(name)!r} that {first} calls {_short(mine)!r}; give it one "
                "name"
            )


def _short(name: str) -> str:
    """A name for a message."""
    return name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}..."


def _plain(name: str) -> str:
    """A name without what people leave out of it; what is no letter may be all that tells C from C++."""
    return _FILLERS.sub("", name.casefold()) or name
