"""Writes Documents as MDS shards."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType

from streaming import MDSWriter

from lcl_composer.data.document import MDS_COLUMNS, Document
from lcl_composer.data.sizes import size_of, write_sizes
from lcl_composer.errors import DataError


class DocumentWriter:
    """Context manager that writes Documents into a folder of MDS shards, and their sizes beside the index.

    The index is written last, and only when the block ends without an exception: a folder without
    ``index.json`` is not a data set, so a half-written one is never trained on.

    Args:
        out: Folder to write, or a remote URL that Streaming can write to; there no sizes are written.
        size_limit: Bytes a shard before compression.
        compression: Streaming's compression, with a level if wanted (``zstd:7``); ``None`` for none.
        hashes: Hashes that the index keeps of each shard, to find damaged ones.
        overwrite: Delete what the folder holds. Without it a folder that holds anything is refused.

    Raises:
        DataError: If the folder holds files and ``overwrite`` is not set.
    """

    def __init__(
        self,
        out: str | Path,
        size_limit: int = 1 << 26,
        compression: str | None = "zstd",
        hashes: tuple[str, ...] = ("xxh64",),
        overwrite: bool = False,
    ) -> None:
        folder = Path(out)
        self._folder = None if "://" in str(out) else folder
        self._sizes: list[tuple[int, int]] = []
        if self._folder and folder.exists() and any(folder.iterdir()):
            if not overwrite:
                raise DataError(f"{folder} is not empty; choose another folder or allow overwriting")
            shutil.rmtree(folder)
        self._writer = MDSWriter(
            out=str(out),
            columns=MDS_COLUMNS,
            compression=compression,
            hashes=list(hashes),
            size_limit=size_limit,
        )

    def write(self, document: Document) -> None:
        """Append a document.

        Raises:
            DataError: If its id or source cannot be stored as UTF-8.
        """
        try:
            self._writer.write(document.to_record())
        except UnicodeEncodeError as error:
            raise DataError(f"document {document.id!r}: its id or source is not valid Unicode") from error
        self._sizes.append(size_of(document))

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            if self._folder:
                write_sizes(self._folder, self._sizes)
            self._writer.finish()
        else:
            self._writer.cancel_future_jobs()
