"""What a hostile file holds: code that leaves a mark where it runs."""

from __future__ import annotations

import os
import pickle  # noqa: TID251 (hostile files are made with it)
from pathlib import Path
from typing import Any


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def harmful(mark: Path) -> bytes:
    """A pickle that makes the folder ``mark``."""
    return pickle.dumps(Harm(mark))


def harms(content: bytes) -> None:
    """Unpickle, to show that a hostile file would do what it is made for."""
    pickle.loads(content)
