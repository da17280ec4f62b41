"""A step never asks the device for a value: it runs where there are none.

On the meta device a tensor has a shape and no contents; what would make the host wait for a GPU (a boolean
mask, ``nonzero``, ``tolist``, ``item``) raises there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import split_batch
from tests.models.tiny import bad_batch, batch, document, random_batch, tiny_model

BATCHES = {
    "mixed": lambda: random_batch(6),
    "text only": lambda: batch([document("1 2 3", name="a"), document("4 5", name="b")]),
    "all bad": lambda: bad_batch(2),
}


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device has no autocast to switch off."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def on_meta(value: Any) -> Any:
    """As Composer moves a batch: tensors travel, lists stay."""
    if isinstance(value, Mapping):
        return {key: on_meta(inner) for key, inner in value.items()}
    return value.to("meta") if isinstance(value, Tensor) else value


def step(parts: list[PackedBatch], **options: Any) -> torch.nn.Module:
    model = tiny_model(**options).to("meta").train()
    for part in parts:
        part = on_meta(part)
        model.loss(model(part), part)["total"].backward()
        model.flops_per_batch(part)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return model


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("options", [{}, {"contrastive": "sigmoid"}, {"contrastive_weight": 0.0}], ids=str)
def test_a_step_asks_the_device_nothing(rows: Any, options: dict[str, Any]):
    model = step([rows()], **options)
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_nor_in_microbatches():
    step(split_batch(random_batch(6), 2))


def test_what_would_wait_raises_there():
    rows = on_meta(random_batch(6))
    for ask in (lambda: rows["anchors"][rows["anchors"] >= 0], lambda: rows["cu_seqlens"].tolist()):
        with pytest.raises((NotImplementedError, RuntimeError)):
            ask()
