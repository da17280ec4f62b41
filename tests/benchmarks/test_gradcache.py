from __future__ import annotations

import pytest
import torch

from benchmarks.gradcache import VOCAB, build, errors, make_batch


def test_every_document_of_a_batch_takes_part() -> None:
    batch = make_batch(3, 32, seed=0)
    totals = {name: int(count) for name, count in batch["totals"].items()}
    assert totals == {"documents": 3, "targets": 3 * 32, "images": 3, "pairs": 3, "read_images": 0}
    assert int(batch["tokens"].max()) < VOCAB
    with torch.no_grad():
        outputs = build("tiny")(batch)
    assert len(outputs["image_features"]) == len(outputs["context_features"]) == 3


def test_errors_of_the_gradient_and_of_the_worst_parameter() -> None:
    whole = {"a": torch.tensor([1000.0, 1.0]), "b": torch.tensor([0.1]), "none": torch.zeros(1)}
    got = {"a": torch.tensor([1000.0, 2.0]), "b": torch.tensor([0.11]), "none": torch.tensor([1e-9])}
    assert errors(got, whole) == pytest.approx((1e-3, 0.1), rel=1e-3)
