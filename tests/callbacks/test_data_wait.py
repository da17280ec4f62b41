from __future__ import annotations

import time
from pathlib import Path

import pytest
from composer.core import Callback

from lcl_composer.callbacks.jsonl_logger import JsonLinesLogger
from lcl_composer.errors import ConfigError
from lcl_composer.registry import callbacks
from lcl_composer.report.metrics_file import read_metrics
from tests.callbacks.training import make_trainer

NAP = 0.05  # seconds


class SlowLoader(Callback):
    """The first batch takes long, as starting workers does; each further one a nap."""

    def before_dataloader(self, state, logger) -> None:
        time.sleep(NAP if state.timestamp.batch else 10 * NAP)


class SlowModel(Callback):
    def batch_start(self, state, logger) -> None:
        time.sleep(NAP)


def waits(folder: Path, *others: Callback) -> list[tuple[int, float, float]]:
    """Step, seconds a batch and share of each measurement."""
    wait = callbacks.build({"name": "data_wait", "every": "3ba"})
    make_trainer([wait, *others], [JsonLinesLogger(folder / "m.jsonl")], duration="7ba").fit()
    rows = [row for row in read_metrics(folder / "m.jsonl") if "data/wait_share" in row]
    return [(row["step"], row["data/wait_seconds"], row["data/wait_share"]) for row in rows]


def test_seconds_and_share_of_windows_without_the_first_batch(tmp_path: Path) -> None:
    found = waits(tmp_path, SlowLoader(), SlowModel())
    assert [step for step, _, _ in found] == [4, 7]
    for _, seconds, share in found:
        assert NAP <= seconds < 3 * NAP  # with the first batch it would be 4
        assert 0.2 < share < 0.8


def test_data_that_are_there_cost_nothing(tmp_path: Path) -> None:
    assert all(share < 0.3 for _, _, share in waits(tmp_path, SlowModel()))


def test_a_frequency_of_nothing_is_refused() -> None:
    for name in ("data_wait", "host_memory", "gradient_norms"):
        with pytest.raises(ConfigError, match="must be in batches, at least 1ba"):
            callbacks.build({"name": name, "every": "0ba"})
