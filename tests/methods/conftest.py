"""What whole runs of the methods train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lcl_composer.data.shared_memory import clean_shared_memory
from tests import runs
from tests.methods.whole_runs import pairs


@pytest.fixture
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    clean_shared_memory()


@pytest.fixture
def data(_own_folder: None, tmp_path: Path) -> Path:
    """Documents of texts and images in any order; the working directory is where the run goes."""
    return runs.write_data(tmp_path / "data", [runs.made_up(index) for index in range(30)])


@pytest.fixture
def pair_data(_own_folder: None, tmp_path: Path) -> Path:
    """An image and a text each."""
    return runs.write_data(tmp_path / "data", pairs(30))
