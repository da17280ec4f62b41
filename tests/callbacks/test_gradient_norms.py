from __future__ import annotations

import math

import pytest
import torch
from composer.core import Algorithm

from lcl_composer.algorithms.gradient_clipping import GradientClipping
from lcl_composer.algorithms.layer_freezing import LayerFreezing
from lcl_composer.callbacks.gradient_norms import part_norms
from lcl_composer.registry import callbacks
from tests.algorithms.training import Record, logged, make_trainer

PARTS = ("encoder", "pooler", "language_model", "heads")


def train(*algorithms: Algorithm, every: str = "1ba", **settings):
    norms = callbacks.build({"name": "gradient_norms", "every": every})
    record = Record()
    trainer = make_trainer(algorithms, [norms, record], **settings)
    trainer.fit()
    return trainer, record.gradients


def expected(gradients: dict[str, torch.Tensor], part: str) -> float:
    names = {n for n in gradients if n.startswith(f"{part}.")}
    if part == "heads":
        names = {n for n in gradients if n.split(".")[0] not in PARTS}
    return math.sqrt(sum(float(gradients[n].double().square().sum()) for n in names))


def test_parts_and_total_of_the_whole_batch_in_microbatches() -> None:
    trainer, gradients = train(duration="2ba", micro=3)  # three, three and two documents
    for part in PARTS:
        values = logged(trainer, f"gradient_norm/{part}")
        assert values == pytest.approx([expected(g, part) for g in gradients], rel=1e-4)
        assert all(value > 0 for value in values)
    totals = logged(trainer, "gradient_norm/total")
    assert totals == pytest.approx(
        [math.hypot(*(expected(g, p) for p in PARTS)) for g in gradients], rel=1e-4
    )
    assert logged(trainer, "gradient_norm/total_clipped") == pytest.approx(totals)


def test_before_and_after_clipping() -> None:
    trainer, _ = train(duration="1ba")
    free = logged(trainer, "gradient_norm/total")
    trainer, _ = train(GradientClipping("norm", 0.1), duration="1ba")
    assert logged(trainer, "gradient_norm/total") == free
    assert free[0] > 0.2
    assert logged(trainer, "gradient_norm/total_clipped") == pytest.approx([0.1], rel=1e-3)


def test_only_every_so_often() -> None:
    trainer, _ = train(every="2ba", duration="4ba")
    assert len(logged(trainer, "gradient_norm/total")) == 2
    assert len(logged(trainer, "gradient_norm/total_clipped")) == 2


def test_a_frozen_part_is_left_out() -> None:
    trainer, _ = train(LayerFreezing(["encoder"]), duration="1ba")
    assert logged(trainer, "gradient_norm/encoder") in ([], [0.0])
    assert len(logged(trainer, "gradient_norm/pooler")) == 1


def test_no_gradients_at_all() -> None:
    assert part_norms(torch.nn.Linear(2, 2)) == {"total": 0.0}
