from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from lcl_composer.callbacks.curves import Curves
from lcl_composer.callbacks.jsonl_logger import JsonLinesLogger
from lcl_composer.callbacks.training_metrics import TrainingMetrics
from lcl_composer.report.curves import panels, plot_curves, smoothed
from tests.callbacks.training import make_trainer


def rows(count: int) -> list[dict]:
    rng = np.random.default_rng(0)
    made = []
    for step in range(1, count + 1):
        decay = math.exp(-step / 200)
        row = {
            "step": step,
            "loss/train/contrastive": 1.0 + 3.2 * decay + 0.2 * rng.standard_normal(),
            "loss/train/generation": 1.5 + 4 * decay + 0.1 * rng.standard_normal(),
            "loss/train/total": 1.6 + 4.3 * decay + 0.1 * rng.standard_normal(),
            "loss/logit_scale": 14.3 + step / 50,
            "lr-AdamW/group0": 5e-4 * min(1, step / 50),
            "lr-AdamW/group1": 5e-4 * min(1, step / 50),
        }
        if step % 10 == 0:
            row["throughput/images_per_sec"] = 240 + 10 * rng.standard_normal()
        if step % 200 == 0:
            row |= {"metrics/eval/contrastive": 1.2 + 3 * decay, "metrics/eval/generation": 1.6 + 4 * decay}
        made.append(row)
    return made


def test_a_trained_run_has_curves(tmp_path: Path) -> None:
    callbacks = [TrainingMetrics(window_size=2), Curves(tmp_path)]
    make_trainer(callbacks, [JsonLinesLogger(tmp_path / "metrics.jsonl")], duration="6ba").fit()
    with Image.open(tmp_path / "plots/curves.png") as image:
        assert image.width > 1000
        assert image.height > 500
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_each_metric_that_was_logged_has_its_panel(tmp_path: Path) -> None:
    assert plot_curves(rows(600), tmp_path / "all.png", "quickstart")
    assert plot_curves([{"step": 1, "loss/train/total": 1.0}], tmp_path / "one.png", "one")
    with Image.open(tmp_path / "all.png") as many, Image.open(tmp_path / "one.png") as one:
        assert many.width == 3 * one.width
        blue = (np.asarray(many.convert("RGB")).astype(int) @ [-1, 0, 1]) > 60
        orange = (np.asarray(many.convert("RGB")).astype(int) @ [1, 0, -1]) > 80
        width = many.width // 3
        for column in range(3):
            for top in (0, many.height // 2):
                assert blue[top : top + many.height // 2, column * width : (column + 1) * width].sum() > 100
        assert orange[: many.height // 2, :width].sum() > 50  # held out over contrastive
        assert orange[:, 2 * width :].sum() == 0


def test_nothing_logged_writes_nothing(tmp_path: Path) -> None:
    assert not plot_curves([{"step": 1, "other": 2.0}], tmp_path / "none.png", "none")
    assert not (tmp_path / "none.png").exists()


def test_gaps_do_not_spread() -> None:
    values = smoothed(np.array([1.0, np.nan, 3.0, 3.0]), 3)
    assert values.tolist() == [1.0, 2.0, 3.0, 3.0]


def test_every_loss_of_a_method_has_a_panel_with_its_unit() -> None:
    keys = {"loss/train/total", "loss/train/generation", "loss/train/image_matching"}
    found = {panel.title: (panel.unit, panel.held_out) for panel in panels(keys)}
    assert found["Generation loss"] == ("nats a token", "metrics/eval/generation")
    assert found["Image matching loss"] == ("", "metrics/eval/image_matching")
    assert found["Total loss"] == ("weighted sum", None)
