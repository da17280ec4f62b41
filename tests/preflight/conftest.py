from __future__ import annotations

from pathlib import Path

import pytest

from tests import runs
from tests.preflight.plans import DOCUMENTS


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of small documents, not to be changed."""
    return runs.write_data(tmp_path_factory.mktemp("data"), DOCUMENTS)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
