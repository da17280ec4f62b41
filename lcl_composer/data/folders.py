"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from lcl_composer.errors import DataError


@contextmanager
def whole_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that takes its place when the block ends without an error.

    An error leaves nothing new; a process killed half-way leaves only ``<target>.partial``, which the next
    one throws away.

    Args:
        target: Where the folder goes.
        replace: Delete what stands there; else only an empty folder gives way.

    Raises:
        DataError: If something stands there that may not be replaced.
    """
    if not replace and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: holds files already; choose another folder or empty it")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(target)
    os.replace(partial, target)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield a place beside ``target`` for a file that takes its place when the block ends without an error.

    Its name is nobody else's: processes of two containers that share a disk may have one number.
    """
    partial = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
