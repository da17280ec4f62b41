from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from lcl_composer.build import build_trainer
from lcl_composer.config import compose
from lcl_composer.data.collate import collate, make_sample
from lcl_composer.methods.build import build_model, build_tokenizer, layout_rules, model_on_meta
from lcl_composer.methods.lcl import LCL
from lcl_composer.preflight import node
from lcl_composer.preflight.sizes import kept_for_backward, measure, state_share
from tests import runs
from tests.preflight.plans import DOCUMENTS, plan_of


def test_a_checkpoint_has_the_size_that_was_said(data: Path, tmp_path: Path) -> None:
    algorithms = {"ema": {"half_life": "10ba"}}
    path = runs.write_yaml(tmp_path, runs.settings(data, algorithms=algorithms, max_duration="1ba"))
    trainer = build_trainer(compose(path, []))
    trainer.fit()
    trainer.close()
    said = measure(compose(path).run, [DOCUMENTS]).checkpoint
    (written,) = (tmp_path / "runs/tiny/checkpoints").glob("ep*.pt")
    # The rest is names, settings and random states: some ten kB for each of many small tensors.
    assert said < os.path.getsize(written) < 1.5 * said + 400_000


@pytest.mark.parametrize(
    ("optimizer", "share"),
    [
        ({"name": "adamw", "lr": 1e-3}, 2),
        ({"name": "sgd", "lr": 1e-3}, 0),
        ({"name": "sgd", "lr": 1e-3, "momentum": 0.9}, 1),
    ],
)
def test_the_optimizers_state(data: Path, optimizer: dict, share: int) -> None:
    assert state_share(plan_of(data, optimizer=optimizer).run) == share


def test_what_is_frozen_has_no_gradients(data: Path) -> None:
    frozen = plan_of(data, algorithms={"layer_freezing": {"parts": ["encoder"]}}).sizes
    trained = plan_of(data).sizes
    model, _, _ = model_on_meta(plan_of(data).run)
    encoder = sum(4 * p.numel() for p in model.encoder.parameters())
    assert trained.gradients - frozen.gradients == encoder
    assert trained.activations > 1.2 * frozen.activations


def test_what_forward_keeps_is_what_a_real_forward_keeps(data: Path) -> None:
    """On the CPU attention keeps what FlashAttention does, so that the two can be compared."""
    run = plan_of(data).run
    tokenizer = build_tokenizer(run)
    model = build_model(run, tokenizer.vocab_size)
    layout = model.layout(tokenizer, layout_rules(run, 4))
    samples = []
    for document in DOCUMENTS[:8]:
        placed = layout(document, np.random.default_rng(0))
        samples.append(
            make_sample(document.id, placed, torch.zeros(len(placed.images), 3, 16, 16, dtype=torch.uint8))
        )
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(collate(samples))
    real = sum(storage.nbytes() for storage in kept.values())
    meta, _, _ = model_on_meta(run)
    assert kept_for_backward(meta, samples) == pytest.approx(real, rel=0.05)


def test_checkpointing_keeps_less(data: Path) -> None:
    plain = plan_of(data).sizes.activations
    one = plan_of(data, "activation_checkpointing.parts=[encoder]").sizes.activations
    both = plan_of(data, "activation_checkpointing.parts=[encoder,language_model]").sizes.activations
    assert both < 0.95 * one < 0.9 * plain


def test_without_documents_each_is_full(data: Path) -> None:
    run = plan_of(data).run
    full = measure(run, [])
    assert "data.max_tokens" in full.basis
    assert measure(run, [DOCUMENTS]).basis == "8 documents of the data"
    assert full.sample > measure(run, [DOCUMENTS]).sample
    assert full.sample > 6 * 3 * 16 * 16  # images of 4 + 2 tokens in a context of 64


def test_a_forward_that_meta_cannot_run_is_said_and_costs_no_other_size(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, whole = plan_of(data), plan_of(data).sizes
    monkeypatch.setattr(LCL, "forward", lambda self, batch: batch["tokens"].sum().item())
    found = plan.sizes
    assert (found.activations, found.checkpoint) == (0, whole.checkpoint)
    assert "meta" in found.uncounted
    assert node.memory(plan).status == "warn"
