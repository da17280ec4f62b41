"""Captions and answers: losses and gradients against a plain version, over ranks; what is frozen; runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lcl_composer.algorithms.layer_freezing import LayerFreezing
from lcl_composer.build import build_trainer
from lcl_composer.config import compose
from lcl_composer.data.batch import IGNORE, PackedBatch
from lcl_composer.data.document import Document
from lcl_composer.data.shared_memory import clean_shared_memory
from lcl_composer.errors import ConfigError
from lcl_composer.methods.caption import VQA, Caption
from tests import runs
from tests.methods.global_batch import UNEVEN, assert_microbatches_agree, assert_ranks_agree, rows_of
from tests.methods.whole_runs import assert_resumes_exactly, fit, pairs, settings
from tests.models.saved import SIZES, save_language_model
from tests.models.tiny import (
    EMBED_DIM,
    IMAGE,
    TOKENS_PER_IMAGE,
    bad_batch,
    document,
    gradients,
    tiny_method,
)

METHODS: dict[str, Callable[..., Caption]] = {"caption": Caption, "vqa": partial(VQA, prompt="3 {} 4")}


def made(number: int) -> Document:
    """An image with three texts of one to eight tokens."""
    rng = np.random.default_rng([5, number])
    texts = [" ".join(map(str, rng.integers(1, 59, rng.integers(1, 9)))) for _ in range(3)]
    return document(IMAGE, *texts, name=f"d{number}")


def plain_loss(model: Caption, rows: PackedBatch) -> Tensor:
    """Cross-entropy token by token, a document at a time."""
    losses = []
    bounds = pairwise(rows["cu_seqlens"].tolist())
    for pixels, (first, last) in zip(rows["pixel_values"], bounds, strict=True):
        embeddings = model.language_model.embed(rows["tokens"][first:last][TOKENS_PER_IMAGE:])
        whole = torch.cat([model.connector(model.encoder(pixels[None]))[0], embeddings])
        outputs = model.language_model(whole, torch.arange(len(whole)), [len(whole)])
        head: Any = model.language_model
        logits = head.generation_head(head.generation_norm(outputs))
        for position, target in enumerate(rows["targets"][first:last].tolist()):
            if target != IGNORE:
                losses.append(F.cross_entropy(logits[position], torch.tensor(target)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_loss_and_gradients_are_those_of_a_plain_version(method: Callable[..., Caption]) -> None:
    model = tiny_method(method)
    rows = rows_of(model, 5, made)
    loss = model.loss(model(rows), rows)["total"]
    expected = plain_loss(model, rows)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wanted = torch.autograd.grad(expected, list(trained.values()))
    found = gradients(model)
    for name, gradient in zip(trained, wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_microbatches_give_the_gradient_of_the_batch(method: Callable[..., Caption]) -> None:
    assert_microbatches_agree(method, 3, made)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2])
def test_uneven_ranks_have_the_gradient_of_one_process(ranks: int) -> None:
    assert ranks in UNEVEN
    assert_ranks_agree(METHODS["vqa"], ranks, made)


def test_a_batch_without_a_document_trains_nothing_and_leaves_no_gradient_out() -> None:
    model, rows = tiny_method(Caption), bad_batch(2)
    model.loss(model(rows), rows)["total"].backward()
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_operations_are_what_torch_counts() -> None:
    model = tiny_method(METHODS["vqa"]).eval()
    rows = rows_of(model, 4, made)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(rows)["hidden"] @ model.language_model.generation_head.weight.T  # type: ignore[union-attr, operator]
    # torch counts whole score matrices, of which a causal kernel computes half
    above = sum(4 * n * (n - 1) // 2 * EMBED_DIM * 2 for n in rows["lengths"])
    assert sum(model.forward_flops(rows).values()) + above == counter.get_total_flops()


def test_a_frozen_language_model_is_frozen_with_its_head() -> None:
    model = tiny_method(Caption)
    LayerFreezing(["encoder", "language_model"]).prepare(model)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"connector"}
    rows = rows_of(model, 3, made)
    model.loss(model(rows), rows)["total"].backward()
    assert all(gradient.any() for gradient in gradients(model).values())


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield runs.write_data(tmp_path / "data", pairs(30))
    clean_shared_memory()


def values_of(data: Path, method: dict[str, Any], frozen: list[str], **changes: Any) -> dict[str, Any]:
    values = settings(data, method, **changes) | {"evaluation": {}}
    values["model"]["pooler"] = None
    return values | {"algorithms": {"layer_freezing": {"parts": frozen}}}


def test_a_run_in_microbatches_resumes_exactly_and_leaves_a_frozen_encoder_as_it_was(
    data: Path, tmp_path: Path
) -> None:
    changes = {"device_train_microbatch_size": 2}
    values = values_of(data, {"name": "caption", "prompt": "red"}, ["encoder"], **changes)
    composed = compose(runs.write_yaml(tmp_path, values), [])
    trainer = build_trainer(composed)
    model: Any = trainer.state.model
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    trainer.close()
    clean_shared_memory()
    assert_resumes_exactly(tmp_path, values)
    after: Any = fit(tmp_path, values | {"run_name": "whole", "max_duration": "7ba"}).state.model
    assert all(torch.equal(value, before[name]) for name, value in after.encoder.state_dict().items())


@pytest.mark.slow
def test_a_pretrained_language_model_is_read_with_its_own_tokens(data: Path, tmp_path: Path) -> None:
    folder = str(save_language_model(tmp_path / "lm", [" ".join(runs.WORDS)] * 3))
    values = values_of(data, {"name": "caption", "prompt": "red"}, ["encoder", "language_model"])
    values["model"]["language_model"] = {"name": "transformers", "pretrained": folder, **SIZES}
    values["tokenizer"] = {"name": "transformers", "pretrained": folder}
    model: Any = fit(tmp_path, values | {"max_duration": "2ba"}).state.model
    theirs: Any = model.language_model
    embedding = theirs.backbone.get_input_embeddings().weight
    assert torch.equal(theirs.generation_head.weight, embedding)  # OPT ties them, and neither has moved
    assert len(runs.read_metrics(tmp_path)) == 2


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "caption", "prompt": "{}?"}, "prompt: has a question in it"),
        ({"name": "vqa", "prompt": "Answer:"}, "prompt: 'Answer:' has no place for the question"),
        ({"name": "vqa", "prompt": "{} {}"}, "or several"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(data: Path, tmp_path: Path, method: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(runs.write_yaml(tmp_path, values_of(data, method, ["encoder"])), [])
