from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from composer.core import Callback

from callbacks.feature_health import FeatureHealth, alignment, effective_rank, uniformity
from lcl_composer.callbacks.jsonl_logger import JsonLinesLogger
from lcl_composer.registry import callbacks
from lcl_composer.report.metrics_file import read_metrics
from tests.callbacks.training import make_trainer

NAMES = {"image_effective_rank", "context_effective_rank", "image_uniformity", "context_uniformity"}


def test_two_batches_log_both_sides(tmp_path: Path) -> None:
    health = callbacks.build({"name": "feature_health", "every": "1ba", "images": 8})
    make_trainer([health], [JsonLinesLogger(tmp_path / "metrics.jsonl")]).fit()
    for row in read_metrics(tmp_path / "metrics.jsonl"):
        found = {
            name.removeprefix("feature_health/"): v for name, v in row.items() if "feature_health" in name
        }
        assert set(found) == NAMES | {"alignment", "logit_scale"}
        assert 1 <= found["image_effective_rank"] <= 8
        assert 0 <= found["alignment"] <= 4
        assert -4 <= found["context_uniformity"] <= 0
        assert found["logit_scale"] == pytest.approx(math.exp(2), rel=0.05)


def test_runs_without_held_out_data(tmp_path: Path) -> None:
    make_trainer([FeatureHealth("1ba")], [JsonLinesLogger(tmp_path / "m.jsonl")], held_out=False).fit()
    assert "feature_health/alignment" in read_metrics(tmp_path / "m.jsonl")[0]


class Ruin(Callback):
    """From the third batch on, every image has one and the same latent, or NaN."""

    def __init__(self, value: float):
        self.value = value

    def batch_end(self, state, logger) -> None:
        if state.timestamp.batch >= 3:
            state.model.pooler.project.weight.data.fill_(self.value)


@pytest.mark.parametrize(("value", "said"), [(0.0, "effective rank 1.0"), (math.nan, "effective rank nan")])
def test_a_collapse_is_told_when_it_happens_and_names_the_side(
    value: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        make_trainer([Ruin(value), FeatureHealth("1ba", images=12)], duration="3ba").fit()
    warnings = [record.getMessage() for record in caplog.records if "collapsing" in record.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith("batch 3: the image features are collapsing")
    assert said in warnings[0]


def test_a_healthy_run_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make_trainer([FeatureHealth("1ba")], duration="4ba").fit()
    assert not any("collapsing" in record.getMessage() for record in caplog.records)


def test_the_highest_rank_survives_a_resume(tmp_path: Path) -> None:
    first = FeatureHealth("1ba")
    make_trainer([first], save_folder=tmp_path).fit()
    first.highest["image"] = 50.0
    second = FeatureHealth("1ba")
    second.load_state_dict(first.state_dict())
    assert second.highest["image"] == 50.0


def test_effective_rank() -> None:
    assert effective_rank(torch.eye(6)) == pytest.approx(6.0)
    assert effective_rank(torch.ones(6, 4)) == pytest.approx(1.0)
    assert effective_rank(torch.eye(6)[[0, 0, 0, 1, 1, 1]]) == pytest.approx(2.0)
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )


def test_alignment_and_uniformity_against_the_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(9, 4, generator=generator), dim=1) for _ in range(2))
    assert alignment(x, y) == pytest.approx(float(2 - 2 * (x * y).sum(1).mean()), abs=1e-5)
    pairs = [math.exp(-2 * float((x[i] - x[j]).square().sum())) for i in range(9) for j in range(i)]
    assert uniformity(x) == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-5)
    assert uniformity(torch.ones(5, 4) / 2) == pytest.approx(0.0, abs=1e-6)
