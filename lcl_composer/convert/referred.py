"""Which files of a source were referred to, as digests of eight bytes: millions of names fit into memory."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np


class Referred:
    """Names of files below the source.

    Attributes:
        names: Those of the part at work.
    """

    def __init__(self, digests: np.ndarray | None = None) -> None:
        self.names: set[str] = set()
        self._digests = np.empty(0, np.uint64) if digests is None else digests

    def save(self, path: Path) -> None:
        """Write the digests of :attr:`names`."""
        np.array(sorted(map(_digest, self.names)), np.uint64).tofile(path)

    @classmethod
    def load(cls, paths: Iterable[Path]) -> Referred:
        """Read what several parts have written."""
        found = [np.fromfile(path, np.uint64) for path in paths]
        return cls(np.unique(np.concatenate(found)) if found else None)

    def __contains__(self, name: str) -> bool:
        digest = _digest(name)
        place = int(np.searchsorted(self._digests, np.uint64(digest)))
        return place < len(self._digests) and int(self._digests[place]) == digest


def _digest(name: str) -> int:
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")
