"""Every callback with a collective in it on two gloo ranks: what one rank measures, and all stop together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from composer.core import Callback
from composer.loggers import InMemoryLogger

from lcl_composer.callbacks.run_record import RunRecord
from lcl_composer.errors import LCLError
from lcl_composer.registry import callbacks
from tests.algorithms.training import as_launched, make_trainer
from tests.distributed import run_ranks
from tests.evaluation.folders import write_folder

pytestmark = pytest.mark.world_size(2)


def measure(folder: Path, micro: int) -> dict[str, float]:
    """Last value of each metric after two batches."""
    images = {"train": str(folder / "train"), "val": str(folder / "val"), "every": "2ba"}
    specs: list[dict[str, Any]] = [
        {"name": "retrieval", "every": "2ba"},
        {"name": "knn", **images},
        {"name": "linear_probe", **images},
        {"name": "gradient_norms", "every": "1ba"},
        {"name": "host_memory", "every": "1ba"},
        {"name": "data_wait", "every": "1ba"},
        {"name": "speed_monitor", "window_size": 1},
    ]
    watchers = [RunRecord(folder / f"run{micro}", ""), *map(callbacks.build, specs)]
    trainer = make_trainer([], watchers, duration="2ba", micro=micro, optimizer="sgd", evaluate=True)
    trainer.fit()
    memory = next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger))
    return {name: float(values[-1][1]) for name, values in memory.data.items()}


class Ruin(Callback):
    """On the last rank, the second batch has a weight that is NaN."""

    def batch_start(self, state, logger) -> None:
        if int(state.timestamp.batch) == 1 and "random-14" in state.batch["ids"]:
            state.model.module.generation_head.weight.data[0] = math.nan


def stopped(folder: Path) -> str:
    """The message with which a run on two ranks ends."""
    guard = callbacks.build({"name": "loss_guard"})
    trainer = make_trainer([], [RunRecord(folder, ""), guard, Ruin()], micro=4)
    with pytest.raises(LCLError) as caught:
        trainer.fit()
    return str(caught.value)


def on_a_rank(rank: int, ranks: int, folder: Path) -> tuple[dict[str, float], str]:
    as_launched(rank, ranks)
    return measure(folder, 4), stopped(folder / "stopped")


def test_two_ranks_measure_what_one_measures_and_stop_together(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 5)
    write_folder(tmp_path / "val", 3, seed=1)
    alone = measure(tmp_path, 8)
    (first, message), (_, other) = run_ranks(2, on_a_rank, tmp_path)

    same = ("gradient_norm/", "retrieval/", "knn/", "linear_probe/")
    names = [name for name in alone if name.startswith(same)]
    assert len(names) == 6 + 10 + 2 + 2
    assert {name: first[name] for name in names} == pytest.approx(
        {name: alone[name] for name in names}, rel=1e-3
    )
    assert 0.1 < first["memory/host_rss"] < 100
    assert 0 <= first["data/wait_share"] <= 1
    assert first["throughput/flops_per_sec"] == pytest.approx(2 * first["throughput/device/flops_per_sec"])

    assert message == other
    assert message.startswith("batch 2: total loss is nan")
    assert "rank 0: random-8, " in message
    assert "rank 1: text-4, text-5, random-14 and 1 more" in message
    facts = json.loads((tmp_path / "stopped" / "bad_batch.json").read_text())
    assert [found["rank"] for found in facts["ranks"]] == [0, 1]
    assert facts["ranks"][1]["ids"] == ["text-4", "text-5", "random-14", "random-15"]
    assert facts["ranks"][1]["previous_ids"] == ["text-4", "text-5", "random-6", "random-7"]
