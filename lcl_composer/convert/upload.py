"""Finished files to a remote, through Streaming's own uploaders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlparse

from streaming.base.storage.upload import UPLOADERS, CloudUploader

from lcl_composer.errors import DataError


def is_remote(out: str) -> bool:
    """Say whether ``out`` is a URL of an object store."""
    return "://" in out or out.startswith("dbfs:")


def check_remote(out: str, scratch: Path) -> None:
    """Look before hours of work whether ``out`` can be written to, and whether a data set is there already.

    Args:
        out: The remote.
        scratch: An empty folder.

    Raises:
        DataError: If it cannot, or there is one.
    """
    if urlparse(out).scheme not in UPLOADERS:
        known = ", ".join(sorted(f"{name}://" for name in UPLOADERS if name.isalpha()))
        raise DataError(f"{out}: Streaming writes no such remote; it knows {known}")
    try:
        uploader = CloudUploader.get((str(scratch), out), keep_local=True)
        if not urlparse(out).scheme:  # Streaming's list of a plain folder is that of the local side
            found = Path(out, "conversion.json").exists()
        elif type(uploader).list_objects is CloudUploader.list_objects:
            found = False  # Streaming lists no Azure, Databricks or Hugging Face; there users must know
        else:
            found = bool(uploader.list_objects("conversion.json"))
    except Exception as error:  # each store's client has its own
        raise DataError(f"{out}: cannot write there ({type(error).__name__}: {error})") from error
    if found:
        raise DataError(f"{out}: exists already; remove it or name another place")


def upload(files: Iterable[Path], remote: str, scratch: Path) -> None:
    """Copy files to a remote folder, in order. One that is there already is replaced.

    Args:
        files: Local files, which move to ``scratch``.
        remote: The remote folder.
        scratch: An empty folder on their file system.

    Raises:
        DataError: If it fails, after Streaming's retries.
    """
    try:
        uploader = CloudUploader.get((str(scratch), remote), keep_local=True)
        for file in files:
            os.replace(file, scratch / file.name)
            uploader.upload_file(file.name)
    except Exception as error:  # each store's client has its own
        raise DataError(
            f"{remote}: upload failed ({type(error).__name__}: {error}); start again to continue"
        ) from error
