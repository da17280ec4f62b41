"""Reads documents of MDS shards, all or a spread, a shard in memory at a time, and writes nothing."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.format.mds.reader import MDSReader
from streaming.base.hashing import get_hash

from lcl_composer.data.document import Document
from lcl_composer.data.packed import unpack
from lcl_composer.data.shard_index import read_index
from lcl_composer.errors import DataError
from lcl_composer.json_data import load_json

#: Shards that a sample is spread over: each is read whole, 64 MiB before compression by default.
MAX_SHARDS = 64


@dataclass(frozen=True)
class Shards:
    """The shards of a data set.

    Attributes:
        folder: Where their index is.
        present: Index entries of the shards that are in the folder.
        missing: Number of the others: a cache holds only part of its remote.
    """

    folder: Path
    present: list[dict[str, Any]]
    missing: int

    @property
    def documents(self) -> int:
        """Documents in the shards that are here."""
        return sum(shard["samples"] for shard in self.present)

    def check_whole(self) -> None:
        """Raise DataError if shards are not here."""
        if self.missing:
            raise DataError(
                f"{self.folder}: {self.missing} shards of its index are not here; copy them first"
            )


def open_shards(folder: Path) -> Shards:
    """Read the index of a folder and see which shards are there.

    Raises:
        DataError: If there is no index, it is no index of Documents in safe encodings, or no shard is there.
    """
    path = folder / "index.json"
    if not path.is_file():
        raise DataError(f"{folder}: no data set (no index.json){_suggestion(folder)}")
    shards = read_index(path)
    present = [shard for shard in shards if shard["samples"] and _stored(folder, shard)]
    if not any(shard["samples"] for shard in shards):
        raise DataError(f"{folder}: holds no document")
    if not present:
        raise DataError(f"{folder}: none of the {len(shards)} shards of its index is here; copy them first")
    return Shards(folder, present, len(shards) - len(present))


def sample(shards: Shards, count: int) -> Iterator[Document | DataError]:
    """Yield ``count`` documents spread evenly over the data set, in its order; the same ones each time.

    They come from at most ``MAX_SHARDS`` shards, themselves spread evenly. A document whose record does not
    add up is yielded as the error.

    Raises:
        DataError: If a shard is damaged.
    """
    chosen = [shards.present[i] for i in spread(len(shards.present), MAX_SHARDS)]
    places = spread(sum(shard["samples"] for shard in chosen), count)
    first = 0
    for shard in chosen:
        inside = [place - first for place in places if first <= place < first + shard["samples"]]
        if inside:
            yield from _documents(shards.folder, shard, inside)
        first += shard["samples"]


def read_shard(folder: Path, shard: dict[str, Any]) -> Iterator[Document | DataError]:
    """Yield all documents of a shard, given by its entry in the index of ``folder``.

    A document whose record does not add up is yielded as the error.

    Raises:
        DataError: If the shard is damaged.
    """
    return _documents(folder, shard, range(shard["samples"]))


def read_places(folder: Path, shard: dict[str, Any], places: Iterable[int]) -> Iterator[Document | DataError]:
    """Yield some documents of a shard by their places in it; a bad one is yielded as the error.

    Raises:
        DataError: If the shard is damaged.
    """
    return _documents(folder, shard, places)


def read_documents(folder: Path) -> Iterator[Document]:
    """Yield every document of a data set, in its order.

    Raises:
        DataError: If there is no data set, shards are elsewhere, or a shard or a document is damaged.
    """
    shards = open_shards(folder)
    shards.check_whole()
    for shard in shards.present:
        for document in read_shard(folder, shard):
            if isinstance(document, DataError):
                raise document
            yield document


def read_outlines(folder: Path, shard: dict[str, Any]) -> Iterator[tuple[list[str], int]]:
    """Yield texts and number of images of each document of a shard, without reading its images.

    Raises:
        DataError: If the shard is damaged.
    """
    for segments in _segments(folder, shard):
        texts = [segment["text"] for segment in segments if "text" in segment]
        yield texts, len(segments) - len(texts)


def read_sizes_of(folder: Path, shard: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield bytes of text and number of images of each document of a shard, without reading its images.

    Raises:
        DataError: If the shard is damaged.
    """
    for texts, images in read_outlines(folder, shard):
        yield sum(len(text.encode("utf-8", "replace")) for text in texts), images


def _segments(folder: Path, shard: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    path, _, packed = _stored(folder, shard) or (folder, {}, False)
    data = np.frombuffer(_load(folder, shard), np.uint8) if packed else np.memmap(path, np.uint8, "r")
    fixed, column = shard["column_sizes"], shard["column_names"].index("segments")
    header = 4 * sum(not size for size in fixed)
    try:
        for begin in data[4 : 4 * (1 + shard["samples"])].view(np.uint32).tolist():
            given = iter(data[begin : begin + header].view(np.uint32).tolist())
            sizes = [size or next(given) for size in fixed]
            start = begin + header + sum(sizes[:column])
            segments = load_json(data[start : start + sizes[column]].tobytes())
            if not all(isinstance(segment.get("text", ""), str) for segment in segments):
                raise TypeError("a text is none")
            yield segments
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        raise DataError(
            f"{path}: damaged ({type(error).__name__}: {error}); copy or convert it anew"
        ) from error


def spread(total: int, count: int) -> list[int]:
    """Return ``count`` whole numbers below ``total``, evenly apart and rising; all of them if fewer."""
    if count >= total:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def _documents(folder: Path, shard: dict[str, Any], places: Iterable[int]) -> Iterator[Document | DataError]:
    reader = MDSReader.from_json(str(folder), None, shard)
    name = shard["raw_data"]["basename"]
    data = _load(folder, shard)
    for place in places:
        try:
            begin, end = np.frombuffer(data, np.uint32, count=2, offset=4 * (1 + place)).tolist()
            yield Document.from_record(reader.decode_sample(data[begin:end]))
        except (ValueError, LookupError, TypeError, RecursionError, struct.error) as error:
            yield DataError(f"{name}, document {place}: {error}")


def _load(folder: Path, shard: dict[str, Any]) -> bytes:
    """Return a shard as it is before compression."""
    path, info, packed = _stored(folder, shard) or (folder, {}, False)
    data = path.read_bytes()
    hashes = info.get("hashes") or {}
    for algorithm, expected in hashes.items():
        if get_hash(algorithm, data) != expected:
            raise DataError(f"{path}: its {algorithm} is not that of the index; copy or convert it anew")
    if not packed:
        return data
    return bytes(unpack(path, shard["compression"], data, shard["raw_data"]["bytes"]))


def shard_file(folder: Path, shard: dict[str, Any]) -> Path:
    """The file of a shard that is present."""
    path, _, _ = _stored(folder, shard) or (folder / shard["raw_data"]["basename"], {}, False)
    return path


def _stored(folder: Path, shard: dict[str, Any]) -> tuple[Path, dict[str, Any], bool] | None:
    """Return a shard's file, its entry in the index and whether it is compressed; None if it is not here."""
    for key in ("raw_data", "zip_data"):
        info = shard[key]
        if info and (path := folder / info["basename"]).is_file():
            return path, info, key == "zip_data"
    return None


def _suggestion(folder: Path) -> str:
    splits = sorted(path.parent.name for path in folder.glob("*/index.json"))
    if splits:
        return f"; its splits have one: {', '.join(str(folder / split) for split in splits)}"
    return "; make one with 'lcl convert'"
