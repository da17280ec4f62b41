"""Checkpoints in an object store, listed and fetched to where all ranks of a run see them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from lcl_composer.errors import DataError, one_line

T = TypeVar("T")

_ATTEMPTS = 5


class RemoteCheckpoints:
    """The checkpoints of a run in an object store.

    Args:
        uri: ``save_folder``, such as ``s3://bucket/run``.
        cache: Folder for what is fetched.
    """

    def __init__(self, uri: str, cache: Path):
        self.uri, self.cache = uri.rstrip("/"), cache

    @cached_property
    def _prefix(self) -> str:
        from composer.utils import parse_uri

        return parse_uri(self.uri)[2].strip("/") + "/"

    @cached_property
    def _store(self) -> Any:
        from composer.utils import maybe_create_object_store_from_uri

        return self._try("reached", lambda: maybe_create_object_store_from_uri(self.uri))

    def names(self) -> list[str]:
        """The names of the files directly in the folder.

        Raises:
            DataError: If the store cannot be reached or refuses.
        """
        names = self._try("listed", lambda: self._store.list_objects(self._prefix))
        inside = [name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix)]
        return [name for name in inside if "/" not in name]

    def fetch(self, name: str) -> Path:
        """Fetch a file, and return where it lies now.

        Raises:
            DataError: If that fails.
        """
        self.cache.mkdir(parents=True, exist_ok=True)
        path = self.cache / name
        self._try("read", lambda: self._store.download_object(self._prefix + name, path, overwrite=True))
        return path

    def forget(self) -> None:
        """Remove what was fetched."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def _try(self, what: str, call: Callable[[], T]) -> T:
        """Call, again after a fault that may pass; one that stays must not look like an empty folder."""
        from composer.utils import retry
        from composer.utils.object_store.object_store import ObjectStoreTransientError

        try:
            return retry(ObjectStoreTransientError, num_attempts=_ATTEMPTS)(call)()
        except DataError:
            raise
        except Exception as error:  # each kind of store raises its own
            raise DataError(
                f"save_folder {self.uri}: cannot be {what} ({type(error).__name__}: {one_line(error, 200)}); "
                "see whether it can be reached and the credentials are right; launched again the run goes on "
                "from its newest checkpoint"
            ) from error
