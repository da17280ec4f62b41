"""A step never asks the device for a value: it runs where there are none.

On the meta device a tensor has a shape and no contents; what would make the host wait for a GPU (a boolean
mask, ``nonzero``, ``tolist``, ``item``) raises there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer.core import Event, Precision
from composer.loggers import Logger
from torch import Tensor

from lcl_composer.algorithms.ema import EMA
from lcl_composer.algorithms.grad_cache import GradCache
from lcl_composer.algorithms.gradient_clipping import GradientClipping
from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import split_batch
from lcl_composer.methods.blip2 import BLIP2
from lcl_composer.methods.caption import Caption
from lcl_composer.methods.classify import Classify
from lcl_composer.methods.clip import CLIP
from lcl_composer.methods.coca import CoCa
from lcl_composer.methods.emu import Emu
from lcl_composer.methods.flamingo import Flamingo
from lcl_composer.methods.lcl import LCL
from lcl_composer.methods.masked import Masked
from lcl_composer.methods.method import Method
from tests.methods.test_masked_images import masked_images
from tests.methods.test_retrieve import FORMS as RETRIEVE_FORMS
from tests.methods.test_retrieve import model_of as retrieve_of
from tests.models.tiny import (
    IMAGE,
    RULES,
    TOKENIZER,
    bad_batch,
    batch,
    document,
    random_batch,
    tiny_method,
    tiny_model,
)

TEXTS = [document("1 2 3", name="a"), document("4 5", name="b")]
BATCHES = {
    "mixed": partial(random_batch, 6),
    "text only": partial(batch, TEXTS),
    "all bad": lambda layout: bad_batch(2),
}
METHODS = {
    "lcl": LCL,
    "lcl sigmoid": partial(LCL, contrastive="sigmoid"),
    "lcl without contrast": partial(LCL, contrastive_weight=0.0),
    "emu": Emu,
    "flamingo": Flamingo,
    "masked": Masked,
    "masked images": masked_images,
}
PAIRS = [document("1 2 3", IMAGE, name="a"), document("4 5", IMAGE, name="b")]
PAIR_BATCHES = {
    "pairs": partial(batch, PAIRS),
    "one pair": partial(batch, PAIRS[:1]),
    "all bad": BATCHES["all bad"],
}
RETRIEVE = {
    f"retrieve {form}": lambda encoder, pooler, form=form: retrieve_of(form) for form in RETRIEVE_FORMS
}
NAMES = ("1 2 3", "4 5")
PAIR_METHODS = {
    **RETRIEVE,
    "blip2": partial(BLIP2, num_queries=3, query_layers=1, query_heads=2),
    "caption": Caption,
    "classify": partial(Classify, classes=NAMES, num_heads=2),
    "classify internvl": partial(Classify, classes=NAMES, num_heads=2, query="mean", token_norm="layer"),
    "clip": CLIP,
    "coca": partial(CoCa, num_queries=3),
}


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test of this process may have begun a group, which has no meta tensors."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)


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


def step(model: Method, parts: list[PackedBatch]) -> None:
    model.to("meta").train()
    for part in parts:
        part = on_meta(part)
        model.loss(model(part), part)["total"].backward()
        model.flops_per_batch(part)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_step_asks_the_device_nothing(rows: Any, method: Any):
    model = tiny_method(method)
    step(model, [rows(model.layout(TOKENIZER, RULES))])
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("rows", PAIR_BATCHES.values(), ids=PAIR_BATCHES)
@pytest.mark.parametrize("method", PAIR_METHODS.values(), ids=PAIR_METHODS)
def test_nor_does_a_method_on_pairs(rows: Any, method: Any):
    test_a_step_asks_the_device_nothing(rows, method)


def test_nor_do_clipping_and_the_average():
    model = tiny_model().to("meta")
    state: Any = SimpleNamespace(model=model, timestamp=SimpleNamespace(batch=3))
    ema = EMA("2ba")
    ema._make(model)
    step(model, [random_batch(4)])
    for algorithm in (GradientClipping("norm", 0.1), GradientClipping("value", 0.1), ema):
        algorithm.apply(Event.BATCH_END, state, Logger(state))


def test_nor_does_grad_cache():
    model = tiny_model().to("meta")
    device = SimpleNamespace(name="meta", batch_to_device=on_meta)
    state: Any = SimpleNamespace(
        model=model,
        device=device,
        precision=Precision.FP32,
        precision_config=None,
        auto_microbatching=False,
        device_train_microbatch_size=2,
        dataloader=None,
        batch=random_batch(6),
    )
    cache = GradCache()
    for event in (Event.BATCH_START, Event.BEFORE_TRAIN_BATCH):
        cache.apply(event, state, Logger(state))
    for part in split_batch(state.batch, 2):
        cache.apply(Event.BEFORE_FORWARD, state, Logger(state))
        step(model, [part])
    assert not cache._pieces


def test_nor_in_microbatches():
    step(tiny_model(), split_batch(random_batch(6), 2))


def test_what_would_wait_raises_there():
    rows = on_meta(random_batch(6))
    for ask in (lambda: rows["anchors"][rows["anchors"] >= 0], lambda: rows["cu_seqlens"].tolist()):
        with pytest.raises(RuntimeError):
            ask()
