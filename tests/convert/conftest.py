"""Source folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def tree(tmp_path) -> Callable[[dict[str, bytes | str]], Path]:
    """Writes files under ``<tmp>/source`` and returns that folder."""

    def write(files: dict[str, bytes | str]) -> Path:
        for name, content in files.items():
            path = tmp_path / "source" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / "source"

    return write
