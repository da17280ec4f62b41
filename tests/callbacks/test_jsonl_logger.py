from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from composer.core import Callback, Timestamp

from lcl_composer.callbacks.jsonl_logger import JsonLinesLogger
from lcl_composer.callbacks.training_metrics import TrainingMetrics
from lcl_composer.report.metrics_file import read_metrics
from tests.callbacks.training import make_trainer


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Kill(Callback):
    """Fail in the middle of a batch, after its loss is known."""

    def __init__(self, batch: int):
        self.batch = batch

    def after_train_batch(self, state, logger) -> None:
        if state.timestamp.batch == self.batch:
            logger.log_metrics({"loss/train/total": -1.0})
            raise KeyboardInterrupt


def test_one_line_a_batch_under_the_number_of_batches_done(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    trainer = make_trainer([TrainingMetrics(window_size=2)], [JsonLinesLogger(path)], duration="4ba")
    trainer.fit()
    trainer.close()
    rows = lines(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["sample"] for row in rows] == [6, 12, 18, 24]
    assert [row["token"] for row in rows] == [24, 48, 72, 96]
    assert all(
        {"loss/train/total", "loss/train/contrastive", "loss/train/generation"} <= set(row) for row in rows
    )
    assert not any(name.startswith("time/") for row in rows for name in row)
    assert rows[0]["loss/logit_scale"] == pytest.approx(math.exp(2), rel=0.02)
    assert ["throughput/images_per_sec" in row for row in rows] == [False, False, True, False]
    assert rows[2]["throughput/images_per_sec"] == pytest.approx(
        12 / (rows[2]["seconds"] - rows[0]["seconds"]), rel=0.2
    )


def test_batches_that_the_file_lacks_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, state = tmp_path / "metrics.jsonl", SimpleNamespace(timestamp=Timestamp(batch=3))
    for there, said in ((3, ""), (5, ""), (2, "ends at batch 2, and the checkpoint is of batch 3")):
        path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, there + 1)) + '{"step": 9, "lo')
        JsonLinesLogger(path).after_load(state, None)  # type: ignore[arg-type]
        out = capsys.readouterr().out
        assert said in out
        assert bool(said) == bool(out)
    path.unlink()
    JsonLinesLogger(path).after_load(state, None)  # type: ignore[arg-type]
    assert "ends at batch 0, and the checkpoint is of batch 3" in capsys.readouterr().out


def test_a_line_is_on_disk_when_its_batch_ends(tmp_path: Path) -> None:
    path, seen = tmp_path / "metrics.jsonl", []

    class Look(Callback):
        def before_dataloader(self, state, logger) -> None:
            seen.append(len(lines(path)) if path.exists() else 0)

    make_trainer([Look()], [JsonLinesLogger(path)], duration="3ba").fit()
    assert seen == [0, 1, 2]


def test_what_an_evaluation_logs_keeps_its_batchs_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"

    class Measure(Callback):
        def batch_checkpoint(self, state, logger) -> None:
            logger.log_metrics({"recall": float(state.timestamp.batch)})

    make_trainer([Measure()], [JsonLinesLogger(path)], duration="2ba").fit()
    assert [(row["step"], row["recall"]) for row in lines(path) if "recall" in row] == [(1, 1.0), (2, 2.0)]
    merged = read_metrics(path)
    assert [row["step"] for row in merged] == [1, 2]
    assert all("loss/train/total" in row and "recall" in row for row in merged)


def test_steps_do_not_go_back_after_a_resume(tmp_path: Path) -> None:
    path, checkpoints = tmp_path / "metrics.jsonl", tmp_path / "checkpoints"
    make_trainer([], [JsonLinesLogger(path)], duration="3ba", save_folder=checkpoints).fit()
    whole = lines(path)
    with path.open("a") as file:  # batches that ran after the last checkpoint, and a line cut by the kill
        file.write(
            '{"step": 4, "loss/train/total": 99.0}\n{"step": 5, "loss/train/total": 99.0}\n{"step": 6, "lo'
        )
    make_trainer([], [JsonLinesLogger(path)], duration="5ba", save_folder=checkpoints).fit()
    rows = lines(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[:3] == whole
    assert all(row["loss/train/total"] != 99.0 for row in rows)
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)


def test_a_batch_that_crashed_leaves_no_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    trainer = make_trainer([Kill(2)], [JsonLinesLogger(path)], duration="4ba")
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.close()
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[-1]["loss/train/total"] > 0


def test_a_loss_that_is_not_finite_is_null_in_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"

    class Explode(Callback):
        def batch_end(self, state, logger) -> None:
            logger.log_metrics({"bad": math.nan, "worse": math.inf, "count": 3})

    make_trainer([Explode()], [JsonLinesLogger(path)], duration="1ba").fit()
    row = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert row["bad"] is None
    assert row["worse"] is None
    assert row["count"] == 3
