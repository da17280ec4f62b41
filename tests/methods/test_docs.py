"""The method that docs/methods.md adds, run as it stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lcl_composer.data.shared_memory import clean_shared_memory
from tests import runs
from tests.methods.global_batch import assert_operations_are_what_torch_counts
from tests.methods.whole_runs import assert_resumes_exactly, pairs, settings
from tests.models.tiny import tiny_method

LISTING = re.compile(r"```python\n# (methods/\w+\.py)\n(.*?)```", re.DOTALL)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    clean_shared_memory()


def test_its_operations_are_what_torch_counts() -> None:
    found = LISTING.search((runs.ROOT / "docs/methods.md").read_text())
    assert found is not None
    namespace: dict[str, Any] = {}
    exec(found[2], namespace)
    assert_operations_are_what_torch_counts(tiny_method(namespace["TwoTowers"]))


def test_the_listing_trains_resumes_and_is_exported(tmp_path: Path) -> None:
    found = LISTING.search((runs.ROOT / "docs/methods.md").read_text())
    assert found is not None
    assert 30 <= found[2].count("\n") <= 45
    (tmp_path / "methods").mkdir()
    (tmp_path / found[1]).write_text(found[2])
    data = runs.write_data(tmp_path / "data", pairs(30))
    grad_cache = {"device_train_microbatch_size": 2, "algorithms": {"grad_cache": {}}}
    assert_resumes_exactly(tmp_path, settings(data, {"name": "two_towers"}, **grad_cache))
