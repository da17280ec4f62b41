"""A streaming data set whose threads cannot fail in silence, nor be waited for when they have failed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from streaming import StreamingDataset
from streaming.base.dataset import _Iterator, _ShardState

from lcl_composer.errors import DataError, LCLError, one_line


class WatchedDataset(StreamingDataset):
    """Streaming's data set, which tells the one who iterates what its download threads raised.

    Streaming's own prints a trace, ends the epoch early as if all were well, and may wait for ever for
    threads that are dead.
    """

    _key: str  #: What the messages name, such as ``data.train``.
    _failure: BaseException | None = None

    def __iter__(self) -> Iterator[Any]:
        """Yield this worker's samples of an epoch.

        Raises:
            DataError: If a shard cannot be had.
        """
        yield from super().__iter__()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what a download thread raised, if one did.

        Raises:
            DataError: It, under the data set's key.
        """
        if isinstance(self._failure, LCLError):
            raise self._failure
        if self._failure is not None:
            raise DataError(f"{self._key}: {one_line(self._failure)}") from self._failure

    def on_exception(self, future: Future) -> None:
        """Keep what a download thread raised for the thread that yields samples."""
        if error := future.exception():
            self._failure = self._failure or error  # the first says why; others follow from it
            self._event.set()

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Fetch a shard; if that fails, leave it to others to try, who would otherwise wait for ever."""
        try:
            super().prepare_shard(shard_id, blocking)
        except BaseException:
            self._shard_states[shard_id] = _ShardState.REMOTE
            raise

    def _prepare_thread(self, it: _Iterator) -> None:
        try:
            super()._prepare_thread(it)
        except BaseException:
            it.on_exit()  # the end of the epoch waits until two of its three threads have said so
            raise

    def _ready_thread(self, it: _Iterator) -> None:
        try:
            super()._ready_thread(it)
        except BaseException:
            it.on_exit()
            raise
