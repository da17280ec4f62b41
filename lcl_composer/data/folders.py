"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that takes its place when the block ends without an error.

    An error leaves nothing new; a process killed half-way leaves only ``<target>.partial``, which the next
    one throws away. What stood at ``target`` is replaced: callers decide beforehand whether it may be.
    """
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
