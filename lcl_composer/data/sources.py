"""Where shards come from: a source of Documents as Streaming's ``Stream``, with downloads that fail well.

Streaming 0.13 checks no size, looks at a hash only right after a download, gives up on the first mismatch and
waits for a remote that does not answer as long as the remote's client does. Here a damaged file is fetched
again, and what cannot be fetched is told in one line within ``download_timeout``.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streaming import Stream
from streaming.base.constant import TICK
from streaming.base.format import FileInfo, Reader
from streaming.base.format.mds import MDSReader
from streaming.base.hashing import get_hash
from streaming.base.util import wait_for_file_to_exist
from streaming.base.world import World

from lcl_composer.data.folders import whole_file
from lcl_composer.data.packed import refuse_link, unpack, write_new
from lcl_composer.data.shard_index import read_index
from lcl_composer.data.sizes import SIZES_FILE, read_sizes
from lcl_composer.errors import DataError, one_line

log = logging.getLogger(__name__)

_INDEX = "index.json"
#: Seconds between two attempts at a file, at most.
_LONGEST_PAUSE = 10.0
#: Beside a data set's index: how many documents each class has, and of which index that was counted.
CLASSES_FILE = "classes.json"


@dataclass(frozen=True, slots=True)
class ShardSet:
    """One set of shards, how much of it an epoch takes, and which of its documents.

    At most one of ``proportion``, ``repeat`` and ``choose`` is set.

    Attributes:
        key: Its place in the configuration, for messages.
        local: Folder of the shards (with ``remote``: the cache).
        remote: Where to fetch shards from, or None.
        split: Sub-folder of both, or None.
        proportion: Its share of an epoch; relative to the others' ``proportion``.
        repeat: How often an epoch goes through it; may be a fraction.
        choose: Documents of it an epoch.
        max_images: Images of a document beyond this number are left out; None for all.
        min_images: A document with fewer images is passed over.
        min_words: A document with fewer words is passed over.
    """

    key: str
    local: str
    remote: str | None = None
    split: str | None = None
    proportion: float | None = None
    repeat: float | None = None
    choose: int | None = None
    max_images: int | None = None
    min_images: int = 0
    min_words: int = 0


class DocumentSource(Stream):
    """Streaming's ``Stream`` over shards of Documents.

    Args:
        source: The shards.
        download_retry: Further attempts at a file that cannot be fetched, or that arrives damaged.
        download_timeout: Seconds that a file may take, all attempts together.
        validate_hash: Hash that a fetched file is held to where the index names it (``xxh64``), or None. Its
            size is always compared.
    """

    def __init__(
        self, source: ShardSet, *, download_retry: int, download_timeout: float, validate_hash: str | None
    ) -> None:
        super().__init__(
            remote=source.remote,
            local=source.local,
            split=source.split,
            proportion=source.proportion,
            repeat=source.repeat,
            choose=source.choose,
            download_retry=download_retry,
            download_timeout=download_timeout,
        )
        self.source = source
        self._hash = validate_hash
        self._unpacked: dict[str, int] = {}  # bytes of each shard before compression, by its name

    @property
    def folder(self) -> Path:
        """Where the shards lie or are cached."""
        return Path(self.local, self.split)

    def folder_of_index(self) -> Path:
        """The folder, its index and the list of its classes fetched where they lie elsewhere.

        Raises:
            DataError: If they cannot be fetched; without that list every shard would have to be.
        """
        for name in (_INDEX, CLASSES_FILE) if self.can_fetch else ():
            if not (self.folder / name).is_file():
                self._fetch_whole(name)
        return self.folder

    def _fetch_whole(self, name: str) -> None:
        """Fetch a file that lies beside the shards; others see it when all of it is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self.folder / name) as partial:
            self._download_file(name, partial.name)

    def sizes(self, documents: int) -> NDArray[np.uint32] | None:
        """The sizes [N, 2] of so many documents, fetched where they lie elsewhere; None: there are none."""
        if self.can_fetch and not (self.folder / SIZES_FILE).is_file():
            try:
                self._fetch_whole(SIZES_FILE)
            except DataError:
                return None
        return read_sizes(self.folder, documents)

    @property
    def can_fetch(self) -> bool:
        """Whether a damaged file can be had again."""
        return self.remote not in (None, self.local)

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        """Return the readers of the shards; the index is fetched if need be.

        Raises:
            DataError: If there is no index, it cannot be had, or it is not one of Documents.
        """
        key, index = self.source.key, self.folder / _INDEX
        if not index.is_file() and self.remote is None:
            raise DataError(
                f"{key}.local: no data set in {self.folder} (no {_INDEX} there); convert one with "
                f"'lcl convert', set {key}.local to where it lies, or set {key}.remote"
            )
        if not index.is_file() and world.is_local_leader:
            self._fetch_whole(_INDEX)
        elif not index.is_file():
            try:
                # The leader may use up the whole time; it says better what is wrong.
                wait_for_file_to_exist(str(index), TICK, self.download_timeout + 5, "")
            except RuntimeError as error:
                raise DataError(
                    f"{self.source.key}.remote: {_INDEX} did not arrive in {self.folder}"
                ) from error
        shards, hashes = trained_on(index)
        if self._hash is not None and self._hash not in hashes:
            log.warning(
                "%s: the index holds no %s hashes; shards are checked by size only", index, self._hash
            )
        self._unpacked = {shard["raw_data"]["basename"]: shard["raw_data"]["bytes"] for shard in shards}
        return [self._reader(shard) for shard in shards]

    def _reader(self, shard: dict[str, Any]) -> MDSReader:
        """Return a shard's reader, without the deep copy that makes ``from_json`` slow on a long index."""
        options = {key: value for key, value in shard.items() if key not in ("version", "format")}
        for key in ("raw_data", "zip_data"):
            options[key] = FileInfo(**shard[key]) if shard[key] else None
        return MDSReader(self.local, self.split, **options)

    def set_up_local(self, shards: list[Reader], cache_usage_per_shard: NDArray[np.int64]) -> None:
        """Note which shards are present; drop truncated files that can be fetched again."""
        if self.can_fetch:
            for info in (i for shard in shards for pair in shard.file_pairs for i in pair if i is not None):
                path = self.folder / info.basename
                if path.is_file() and path.stat().st_size != info.bytes:
                    log.warning("%s is truncated or of another version; fetching it again", path)
                    path.unlink()
        super().set_up_local(shards, cache_usage_per_shard)

    def damage(self, info: FileInfo) -> str:
        """Return what is wrong with a file of a shard that is present, empty if nothing is."""
        path = self.folder / info.basename
        if not path.is_file():
            return f"{path} is missing, or could not be unpacked"
        if (size := path.stat().st_size) != info.bytes:
            return f"{path} has {size} bytes, not {info.bytes}"
        data = path.read_bytes()
        if self._hash in info.hashes and get_hash(self._hash, data) != info.hashes[self._hash]:
            return f"{path} does not have the {self._hash} hash that the index names"
        return ""

    def _prepare_shard_part(
        self, raw_info: FileInfo, zip_info: FileInfo | None = None, compression: str | None = None
    ) -> int:
        """Bring a file of a shard into the cache, checked; returns the change in bytes of the cache.

        Raises:
            DataError: If it cannot be fetched, or arrives damaged each time.
        """
        if (self.folder / raw_info.basename).is_file():
            return super()._prepare_shard_part(raw_info, zip_info, compression)
        wanted = zip_info or raw_info
        path = self.folder / wanted.basename
        delta, problem = 0, ""
        for _ in range(1 + self.download_retry):
            if not path.is_file():
                self._download_file(wanted.basename)
                delta += wanted.bytes
            problem = self.damage(wanted)
            if not problem:
                return delta + super()._prepare_shard_part(raw_info, zip_info, compression)
            if not self.can_fetch:
                break
            log.warning("%s; fetching it again", problem)
            path.unlink()
            delta -= wanted.bytes
        advice = (
            f"it is damaged at {self.remote}, or the cache's {_INDEX} is of another version: delete the cache"
            if self.can_fetch
            else "copy or convert it anew"
        )
        raise DataError(f"{self.source.key}: {problem}; {advice}")

    def _decompress_shard_part(
        self, zip_info: FileInfo, zip_filename: str, raw_filename: str, compression: str | None
    ) -> None:
        """Decompress a shard, one process at a time: jobs that share a folder share its ``.tmp`` too.

        Raises:
            DataError: If it is not what the index says, or would be written through a link.
        """
        size = self._unpacked[os.path.relpath(raw_filename, self.folder)]
        with open(zip_filename, "r+b") as file:  # NFS locks only what may be written
            fcntl.flock(file, fcntl.LOCK_EX)
            if not os.path.exists(raw_filename):
                write_new(raw_filename, unpack(zip_filename, str(compression), file.read(), size))
                if not self.safe_keep_zip:
                    os.remove(zip_filename)

    def _download_file(self, from_basename: str, to_basename: str | None = None) -> str:
        """Fetch a file into the cache and return its path.

        Raises:
            DataError: If that fails, or takes longer than ``download_timeout``.
        """
        local = str(self.folder / (to_basename or from_basename))
        if self.remote is None:
            raise DataError(f"{self.source.key}: {local} is missing; copy or convert it anew")
        refuse_link(f"{local}.tmp")  # Streaming's downloads go there first
        remote = os.path.join(self.remote, self.split, from_basename)
        deadline = time.monotonic() + self.download_timeout
        # With the index a run begins: a remote that is misspelt shall not take minutes to be told.
        retries = min(
            self.download_retry, {_INDEX: 2, CLASSES_FILE: 2, SIZES_FILE: 1}.get(from_basename, 1 << 30)
        )
        for attempt in range(1 + retries):
            left = max(deadline - time.monotonic(), 0.0)
            try:
                _bounded(lambda: self._downloader.download(remote, local, self.download_timeout), left)
                return local
            except TimeoutError as error:
                raise DataError(
                    f"{self.source.key}.remote: {remote} did not arrive within {self.download_timeout:g} s; "
                    "see whether it can be reached, or raise download_timeout"
                ) from error
            except Exception as error:  # each kind of remote raises its own
                self._downloader.clean_up()
                problem = f"{type(error).__name__}: {one_line(error)}"
            pause = min(0.5 * 2**attempt, _LONGEST_PAUSE, deadline - time.monotonic())
            if attempt < retries and pause > 0:
                time.sleep(pause)
        raise DataError(
            f"{self.source.key}.remote: cannot fetch {remote} in {1 + retries} attempts ({problem}); see "
            "whether it can be reached; launched again the run goes on from its newest checkpoint"
        )


def _bounded(function: Callable[[], None], seconds: float) -> None:
    """Call a function that may never return; raise TimeoutError if it takes too long."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:  # handed to the caller's thread
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError
    if raised:
        raise raised[0]


def trained_on(path: Path) -> tuple[list[dict[str, Any]], set[str]]:
    """Read an index that is to be trained on.

    Returns:
        The shards' entries, and the hashes that all of them have.

    Raises:
        DataError: If the index cannot be read, is not one of Documents, is not safe, or names no samples.
    """
    shards = read_index(path)
    if not sum(s["samples"] for s in shards):
        raise DataError(f"{path}: the data set is empty; convert the data anew")
    return shards, set.intersection(*(set(s.get("hashes") or ()) for s in shards))
