from __future__ import annotations

from typing import Any

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from lcl_composer.algorithms.grad_cache import GradCache
from lcl_composer.algorithms.stop_gradient import StopGradient
from lcl_composer.data.collate import split_batch
from lcl_composer.methods.lcl import LCL
from tests.algorithms.training import Record, batches, logged, make_trainer
from tests.models.tiny import tiny_model

#: Relative to the largest gradient of a parameter, in float32.
TOLERANCE = 1e-6


def model_with_dropout(dropout: float, **options: Any) -> LCL:
    """Dropout in the encoder and in the language model, by torch's global generator."""
    model = tiny_model(**options)
    for module in model.encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    for layer in model.language_model.backbone.decoder.layers:
        layer.dropout = dropout
    return model


def train(
    dropout: float, micro: int, algorithms: list[Any], count: int = 1, **options: Any
) -> tuple[dict[str, Tensor], Any]:
    """Gradients of the first batch and the trainer; ``options`` are those of LCL."""
    record = Record()
    model = model_with_dropout(dropout, **options)
    trainer = make_trainer(algorithms, [record], model=model, micro=micro, duration=f"{count}ba")
    trainer.fit()
    return record.gradients[-1], trainer


def error(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Largest error of a gradient relative to the largest element of its parameter's gradient."""
    assert got.keys() == wanted.keys()
    scale = max(float(g.abs().max()) for g in wanted.values())
    return max(
        float((got[n] - wanted[n]).abs().max() / wanted[n].abs().max().clamp(min=1e-3 * scale))
        for n in wanted
    )


@pytest.mark.parametrize("micro", [1, 3])
def test_gradients_and_losses_are_those_of_the_undivided_batch(micro: int) -> None:
    whole, reference = train(0.0, 8, [])
    cached, trainer = train(0.0, micro, [GradCache()])
    split, _ = train(0.0, micro, [])
    assert error(cached, whole) < TOLERANCE
    assert error(split, whole) > 0.01, "microbatches alone must differ, or the test shows nothing"
    for name in ("contrastive", "generation", "total"):
        metric = f"loss/train/{name}"
        assert logged(trainer, metric) == pytest.approx(logged(reference, metric), rel=1e-6)


def test_the_sigmoid_loss_is_that_of_the_undivided_batch_too() -> None:
    whole, reference = train(0.0, 8, [], contrastive="sigmoid")
    cached, trainer = train(0.0, 3, [GradCache()], contrastive="sigmoid")
    split, _ = train(0.0, 3, [], contrastive="sigmoid")
    assert error(cached, whole) < TOLERANCE
    assert error(split, whole) > 1e-3  # a bias of -10 leaves the negatives little
    assert float(cached["logit_bias"].abs()) > 0
    metric = "loss/train/contrastive"
    assert logged(trainer, metric) == pytest.approx(logged(reference, metric), rel=1e-6)


def with_retained_graphs(dropout: float, micro: int) -> dict[str, Tensor]:
    """Gradient of the global batch through the graphs of its microbatches, which draw dropout in turn."""
    rank, ranks = dist.get_global_rank(), dist.get_world_size()
    batch, model = batches(1, rank, ranks)[0], model_with_dropout(dropout).train()
    torch.manual_seed(5 + rank)
    outputs = [model(part) for part in split_batch(batch, micro)]
    together: Any = {key: torch.cat([o[key] for o in outputs]) for key in outputs[0]}
    model.loss(together, batch)["total"].backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for gradient in gradients.values():
        dist.all_reduce(gradient)
    return {n: gradient / ranks for n, gradient in gradients.items()}


class SeedBeforeBatch(GradCache):
    """Draws dropout from the seed of the reference."""

    def apply(self, event: Any, state: Any, logger: Any) -> None:
        if event.name == "BATCH_START":
            torch.manual_seed(5 + dist.get_global_rank())
        super().apply(event, state, logger)


def test_dropout_falls_as_in_the_cached_forward() -> None:
    cached, _ = train(0.3, 3, [SeedBeforeBatch()])
    assert error(cached, with_retained_graphs(0.3, 3)) < TOLERANCE
    assert error(cached, with_retained_graphs(0.0, 3)) > 0.01


def test_a_stopped_side_stays_stopped() -> None:
    whole, _ = train(0.0, 8, [StopGradient(images=True)])
    cached, _ = train(0.0, 3, [GradCache(), StopGradient(images=True)])
    assert error(cached, whole) < TOLERANCE
    assert float(cached["pooler.query"].abs().max()) == 0


def test_nothing_is_left_behind() -> None:
    trainer = train(0.0, 3, [cache := GradCache()], count=2)[1]
    assert trainer.state.model.contrast_term.contrast.override is None
    assert not cache._pieces


def test_one_microbatch_and_no_contrast_cost_nothing() -> None:
    calls = []
    model = tiny_model(contrastive_weight=0.0)
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    make_trainer([GradCache()], model=model, micro=3, duration="1ba").fit()
    assert len(calls) == 3
    calls.clear()
    model = tiny_model()
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    make_trainer([GradCache()], model=model, micro=8, duration="1ba").fit()
    assert len(calls) == 1


class OutOfMemory(Callback):
    """Pretends that the second microbatch of the first attempt does not fit."""

    def __init__(self) -> None:
        self.forwards = 0

    def after_forward(self, state: State, logger: Logger) -> None:
        self.forwards += 1
        if self.forwards == 2:
            raise RuntimeError("CUDA out of memory, as it were")


def test_auto_microbatching_caches_each_attempt_anew() -> None:
    whole, _ = train(0.0, 8, [])
    record, out_of_memory = Record(), OutOfMemory()
    trainer = make_trainer([GradCache()], [out_of_memory, record], micro=4, duration="1ba")
    trainer.state.auto_microbatching = True  # Composer takes it on GPUs only; the loop is the same
    trainer.fit()
    assert trainer.state.device_train_microbatch_size == 2
    assert out_of_memory.forwards == 2 + 4
    assert error(record.gradients[-1], whole) < TOLERANCE
