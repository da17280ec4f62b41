"""Patch tokens of a frozen encoder on disk: written once, read by row, checked whenever they are opened.

A view is a folder: ``cache.json`` says what its rows depend on; each part, the images of some hundred
documents, is ``NUMBER.npy`` [n, K, W] and ``NUMBER.keys.npy`` [n + 1], the keys and a checksum of both, which
is written last. Rows are read through memory maps: what is held in memory is 16 bytes an image.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcl_composer.data.folders import whole_file
from lcl_composer.errors import DataError, one_line

_DESCRIPTION = "cache.json"


def key_of(document_id: str, image: int) -> int:
    """The 64-bit key of a document's image."""
    name = f"{document_id}\0{image}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little")


class FeatureFolder:
    """The parts of one view on disk.

    Its name is a digest of all that the rows depend on: other weights, documents or settings have another
    folder, so what is found is never stale.

    Args:
        root: Folder of the caches.
        describes: What the rows depend on, as JSON values: encoder, documents, view, precision.
        shape: Patch tokens K and width W of an image.
        dtype: NumPy's name of the numbers' type.
        parts: How many parts there are to be.
    """

    def __init__(
        self, root: Path, describes: Mapping[str, Any], shape: tuple[int, int], dtype: str, parts: int
    ) -> None:
        self.shape, self.dtype, self.parts = shape, np.dtype(dtype), parts
        self.description = {**describes, "shape": list(shape), "dtype": dtype, "parts": parts}
        text = json.dumps(self.description, sort_keys=True)
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:20]

    def missing(self, rank: int = 0, ranks: int = 1) -> tuple[list[int], list[str]]:
        """The parts that are not there whole, and what is wrong with those that were there.

        Args:
            rank: Which share of the parts is looked at: all of their numbers are read.
            ranks: How many shares there are.
        """
        absent, damaged = [], []
        for part in range(rank, self.parts, ranks):
            if not self._path(part, ".keys").exists():
                absent.append(part)
                continue
            try:
                rows, keys, checksum = self._read(part)
                if checksum != _checksum(rows, keys):
                    raise DataError(f"{self._path(part)}: its numbers are not those that were written")
            except DataError as error:
                absent.append(part)
                damaged.append(str(error))
        return absent, damaged

    def create(self) -> None:
        """Make the folder, with what its rows depend on in it.

        Raises:
            DataError: If it cannot be made, or not be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._save(self.folder / _DESCRIPTION, json.dumps(self.description, indent=2).encode())
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> DataError:
        return DataError(
            f"{self.folder}: features cannot be written: {one_line(error)}; set "
            "algorithms.feature_cache.folder to a folder on a disk with room"
        )

    def write(self, part: int, features: Tensor, keys: Sequence[int]) -> None:
        """Write a part.

        Args:
            part: Its number.
            features: [n, K, W] on the CPU.
            keys: n keys, see :func:`key_of`.

        Raises:
            DataError: If a feature is not finite, or not in this type, or the disk does not take them.
        """
        with np.errstate(over="ignore"):
            rows = features.numpy().astype(self.dtype)
        if not np.isfinite(rows).all():
            raise DataError(
                f"{self.folder}: a feature is not finite in {self.dtype}; set algorithms.feature_cache.dtype "
                "to float32, or mend the encoder"
            )
        self.create()
        told = np.append(_as_keys(keys), np.uint64(_checksum(rows, _as_keys(keys))))
        try:
            for path, array in ((self._path(part), rows), (self._path(part, ".keys"), told)):
                with whole_file(path) as partial, partial.open("wb") as file:
                    np.save(file, array, allow_pickle=False)
        except OSError as error:
            raise self._cannot_write(error) from error

    def open(self) -> FeatureRows:
        """All rows.

        Raises:
            DataError: If a part is missing or damaged, or two images have one key.
        """
        return FeatureRows(self.folder, [self._read(part)[:2] for part in range(self.parts)], self.shape)

    def _path(self, part: int, kind: str = "") -> Path:
        return self.folder / f"{part:06d}{kind}.npy"

    def _read(self, part: int) -> tuple[NDArray[Any], NDArray[np.uint64], int]:
        """A part's rows, mapped, its keys, and the checksum that was written."""
        path = self._path(part)
        try:
            told = np.load(self._path(part, ".keys"), allow_pickle=False)
            if told.ndim != 1 or not len(told):
                raise ValueError(f"keys of shape {told.shape}")
            keys = told[:-1]
            rows = np.load(path, mmap_mode="r" if len(keys) else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: truncated or damaged ({one_line(error)})") from error
        if rows.shape != (len(keys), *self.shape) or rows.dtype != self.dtype or keys.dtype != np.uint64:
            raise DataError(f"{path}: {rows.shape} {rows.dtype} for {len(keys)} images, not {self.shape}")
        return rows, keys, int(told[-1])

    def _save(self, path: Path, data: bytes) -> None:
        if not path.exists():
            with whole_file(path) as partial:
                partial.write_bytes(data)


class FeatureRows:
    """The rows of a view by document and image.

    Args:
        folder: For messages.
        parts: Rows [n, K, W] and keys [n] of each part.
        shape: K and W.
    """

    def __init__(
        self,
        folder: Path,
        parts: Sequence[tuple[NDArray[Any], NDArray[np.uint64]]],
        shape: tuple[int, int],
    ) -> None:
        self.folder, self.shape = folder, shape
        self._parts = [rows for rows, _ in parts]
        keys = np.concatenate([np.zeros(0, np.uint64), *(keys for _, keys in parts)])
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._starts = np.cumsum([0, *(len(rows) for rows in self._parts)])
        if len(self._keys) > 1 and (self._keys[1:] == self._keys[:-1]).any():
            raise DataError(f"{folder}: two documents have one id; features are found by it, mend the ids")

    def __len__(self) -> int:
        """How many images it holds."""
        return len(self._keys)

    def row(self, document_id: str, image: int) -> NDArray[Any]:
        """Features [K, W] of a document's image.

        Raises:
            DataError: If it is not there.
        """
        key = np.uint64(key_of(document_id, image))
        at = int(self._keys.searchsorted(key))
        if at == len(self._keys) or self._keys[at] != key:
            raise DataError(
                f"document {document_id!r}, image {image}: no features in {self.folder}; it could not be "
                "decoded when they were computed"
            )
        place = int(self._order[at])
        part = int(self._starts.searchsorted(place, side="right")) - 1
        return self._parts[part][place - int(self._starts[part])]


class FeatureViews:
    """Features in place of pixels: one view of each image after the other, epoch by epoch.

    Args:
        views: The rows of each view.
    """

    def __init__(self, views: Sequence[FeatureRows]) -> None:
        self._views = views
        dtype = views[0]._parts[0].dtype
        self.empty = torch.from_numpy(np.zeros((0, *views[0].shape), dtype))

    def rows(self, document_id: str, images: Sequence[int], epoch: int) -> Tensor:
        """Features [I, K, W] of some of a document's images, of the view whose turn it is.

        Raises:
            DataError: If an image is not there.
        """
        view = self._views[epoch % len(self._views)]
        if not images:
            return self.empty
        return torch.from_numpy(np.stack([view.row(document_id, image) for image in images]))


def _checksum(rows: NDArray[Any], keys: NDArray[np.uint64]) -> int:
    """CRC-32 of a part's rows and keys."""
    numbers: Any = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)  # a buffer; numpy's stubs lack it
    return zlib.crc32(numbers, zlib.crc32(keys.tobytes()))


def _as_keys(keys: Sequence[int]) -> NDArray[np.uint64]:
    return np.array(keys, dtype=np.uint64)
