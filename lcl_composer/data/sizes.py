"""How large each document of a data set is: a file beside the index, there before any shard is.

Ranks that get documents of equal work need it, see ``data/balance.py``. Nothing else does: a data set without
it trains as before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lcl_composer.data.document import Document, Text
from lcl_composer.data.folders import whole_file
from lcl_composer.links import refuse_links

log = logging.getLogger(__name__)

#: An array of numpy's, uint32 [N, 2]: bytes of text and images of each document, in the order of the index.
SIZES_FILE = "sizes.npy"
_TYPE = np.dtype("<u4")


def size_of(document: Document) -> tuple[int, int]:
    """Bytes of a document's text in UTF-8, and its images."""
    texts = [s.text for s in document.segments if isinstance(s, Text)]
    return sum(len(text.encode("utf-8", "replace")) for text in texts), len(document.segments) - len(texts)


def write_sizes(folder: Path, sizes: Iterable[tuple[int, int]]) -> None:
    """Write the sizes of a data set's documents beside its index."""
    _save(folder, np.array(list(sizes), _TYPE).reshape(-1, 2))


def join_sizes(folder: Path, parts: list[Path]) -> None:
    """Write one file of those of the parts of a data set, in their order."""
    _save(folder, np.concatenate([np.load(part, allow_pickle=False) for part in parts]))


def _save(folder: Path, sizes: NDArray[np.uint32]) -> None:
    """Write the whole file at once, so that a name stands for all of it, and through no link."""
    with whole_file(folder / SIZES_FILE) as partial, open(partial, "xb") as file:
        np.save(file, sizes, allow_pickle=False)


def read_sizes(folder: Path, documents: int) -> NDArray[np.uint32] | None:
    """Read the sizes [N, 2] of a data set of so many documents, a page of them at a time.

    Returns:
        None where the file is not there, or is not one of this data set; the log says so.

    Raises:
        DataError: If it is a link that leads out of the folder.
    """
    path = folder / SIZES_FILE
    if not path.is_file():
        return None
    refuse_links(folder, [path])
    try:
        sizes = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s: cannot be read (%s); write it anew with 'lcl sizes'", path, error)
        return None
    if sizes.shape != (documents, 2) or sizes.dtype != _TYPE:
        log.warning(
            "%s: has %s %s for the %d documents of the index; write it anew with 'lcl sizes'",
            path,
            "x".join(map(str, sizes.shape)),
            sizes.dtype,
            documents,
        )
        return None
    return sizes
