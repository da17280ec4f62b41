"""What a YAML reaches beyond its own settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lcl_composer.config import compose
from lcl_composer.config.reach import reach
from tests.runs import settings, write_yaml


def reached(folder: Path, **changes: Any) -> list[tuple[str, str]]:
    return reach(compose(write_yaml(folder, settings(folder, **changes))))


def test_whom_it_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LCL_NOTIFY_COMMAND", "mail me")
    monkeypatch.delenv("LCL_NOTIFY_WEBHOOK", raising=False)
    rows = reached(tmp_path, callbacks={"notify": {}})
    assert ("runs the command in", "LCL_NOTIFY_COMMAND (set), at its end") in rows
    assert ("posts to the address in", "LCL_NOTIFY_WEBHOOK (not set), at its end") in rows
    assert "mail me" not in str(rows)
    assert not [row for row in reached(tmp_path) if "NOTIFY" in row[1]]


def test_the_servers_that_get_its_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine:5000")
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    rows = reached(tmp_path, loggers={"mlflow": {"tracking_uri": "http://theirs:5000"}, "wandb": {}})
    assert ("sends metrics to", "mlflow: http://theirs:5000") in rows
    assert ("sends metrics to", "wandb: the server in WANDB_BASE_URL (not set)") in rows
    assert ("sends metrics to", "mlflow: the server in MLFLOW_TRACKING_URI (set)") in reached(
        tmp_path, loggers={"mlflow": {}}
    )


def test_the_encoder_that_is_a_target(tmp_path: Path) -> None:
    target = {"name": "exported", "folder": "/target"}
    model = settings(tmp_path)["model"] | {"target_encoder": target}
    assert ("fetches or reads", "/target") in reached(tmp_path, method={"name": "masked"}, model=model)


def test_remotes_folders_and_caches_of_every_part(tmp_path: Path) -> None:
    rows = reached(
        tmp_path,
        save_folder="s3://theirs/{run_name}",
        callbacks={"knn": {"train": "/images/train", "val": "/images/val"}},
        evaluation={"zero_shot": {"images": "/images/test"}},
        algorithms={"feature_cache": {"folder": "/cache"}, "layer_freezing": {"parts": ["encoder"]}},
        data={**settings(tmp_path)["data"], "crop_scale": [1.0, 1.0]},
    )
    assert {("writes into", "s3://theirs/tiny"), ("writes into", "/cache")} <= {*rows}
    places = {place for what, place in rows if what == "fetches or reads"}
    assert {"/images/train", "/images/val", "/images/test"} <= places


def test_what_it_makes_beside_its_data_and_what_loggers_write(tmp_path: Path) -> None:
    data = settings(tmp_path)["data"]
    made = {"data": {**data, "train": data["train"] | {"generate": {"name": "shapes", "documents": 9}}}}
    evaluation = {"probe": {"train": "/probe/train", "val": "/probe/val"}, "zero_shot": {"images": "/zero/x"}}
    rows = reached(tmp_path, evaluation=evaluation, loggers={"tensorboard": {"log_dir": "/logs"}}, **made)
    places = {place for what, place in rows if what == "writes into"}
    assert {str(tmp_path / "tokenizer.json"), "/probe", "/zero", "/logs"} <= places
    assert not {"/probe", "/zero"} & {place for what, place in reached(tmp_path, evaluation=evaluation)}
