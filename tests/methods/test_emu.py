"""Emu's layout, losses and gradients against a plain version, over ranks and microbatches; whole runs."""

from __future__ import annotations

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

from lcl_composer.data.batch import IGNORE, PackedBatch
from lcl_composer.data.interleave import Interleaved, Readers
from lcl_composer.methods.emu import Emu
from tests.methods.global_batch import (
    UNEVEN,
    assert_every_parameter_gets_a_gradient,
    assert_idle_work_changes_nothing,
    assert_microbatches_agree,
    assert_ranks_agree,
)
from tests.methods.whole_runs import assert_resumes_exactly, settings
from tests.models.tiny import (
    EMBED_DIM,
    IMAGE,
    RULES,
    TOKENIZER,
    TOKENS_PER_IMAGE,
    bad_batch,
    batch,
    document,
    gradients,
    random_batch,
    random_document,
    tiny_method,
)

LAYOUT = Interleaved(TOKENIZER, RULES, Readers(contrast=False, regression=True))
TEXT, LEADING = document("1 2 3", name="text"), document(IMAGE, "3 4", name="leading")
TRAILING, PICTURE = document("5 6", IMAGE, name="trailing"), document(IMAGE, name="picture")


def model_of(**options: Any) -> Emu:
    return tiny_method(Emu, **options)


def plain_losses(model: Emu, rows: PackedBatch) -> tuple[Tensor, Tensor]:
    """Both losses position by position, each document by itself."""
    cross_entropies, distances = [], []
    bounds = rows["cu_seqlens"].tolist()
    images = model.pooler.proj(model.pooler.values(model.encoder(rows["pixel_values"])))
    starts = rows["image_starts"].tolist()
    for begin, end in pairwise(bounds):
        rows_of_document = list(model.language_model.embed(rows["tokens"][begin:end]))
        predicted = {}
        for number, start in enumerate(starts):
            if begin <= start < end:
                for k in range(TOKENS_PER_IMAGE):
                    rows_of_document[start - begin + k] = images[number, k]
                    predicted[start - begin + k - 1] = images[number, k].detach()
        length = end - begin
        outputs = model.language_model(torch.stack(rows_of_document), torch.arange(length), [length])
        outputs = model.generation_norm(outputs)
        for position, target in enumerate(rows["targets"][begin:end].tolist()):
            if target != IGNORE:
                logits = model.generation_head(outputs[position])
                cross_entropies.append(F.cross_entropy(logits, torch.tensor(target)))
        for position, token in predicted.items():
            distances.append((model.regression_head(outputs[position]) - token).square().mean())
    return torch.stack(cross_entropies).mean(), torch.stack(distances).mean()


def test_all_slots_stay_and_nothing_is_an_anchor() -> None:
    rng, slot = np.random.default_rng(0), TOKENIZER.image_placeholder
    layout = LAYOUT(TRAILING, rng)
    opening = [TOKENIZER.start_of_text, 5, 6, TOKENIZER.start_of_image]
    assert layout.tokens.tolist() == [*opening, *[slot] * TOKENS_PER_IMAGE]
    assert layout.targets.tolist() == [*opening[1:], *[IGNORE] * (TOKENS_PER_IMAGE + 1)]
    assert (layout.image_starts.tolist(), layout.anchors.tolist()) == ([4], [-1])
    alone = LAYOUT(PICTURE, rng)
    assert alone.tokens.tolist() == [TOKENIZER.start_of_image, *[slot] * TOKENS_PER_IMAGE]
    text = LAYOUT(TEXT, rng)
    assert np.array_equal(text.tokens, Interleaved(TOKENIZER, RULES)(TEXT, rng).tokens)


def test_losses_and_gradients_are_those_of_the_paper() -> None:
    model = model_of(generation_weight=2.0, regression_weight=0.3).double()
    rows = batch([LEADING, TRAILING, TEXT, PICTURE, *(random_document(i) for i in range(4))], LAYOUT)
    rows["pixel_values"] = rows["pixel_values"].double() / 128 - 1
    losses = model.loss(model(rows), rows)
    generation, regression = plain_losses(model, rows)
    torch.testing.assert_close(losses["generation"].double(), generation, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["regression"].double(), regression, rtol=1e-5, atol=1e-6)
    losses["total"].backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    wanted = torch.autograd.grad(2.0 * generation + 0.3 * regression, list(trained.values()))
    found = gradients(model)
    for name, expected in zip(trained, wanted, strict=True):
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_the_target_gets_no_gradient_and_the_input_does() -> None:
    """Of an image's tokens the last is no input of a prediction, the others are."""
    model, rows = model_of(generation_weight=0.0), batch([TRAILING], LAYOUT)
    outputs = model(rows)
    outputs["image_tokens"].retain_grad()
    model.loss(outputs, rows)["total"].backward()
    gradient = outputs["image_tokens"].grad
    assert gradient is not None
    assert gradient[0, :-1].abs().amax(1).min() > 0
    assert not gradient[0, -1].any()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)], ids=str)
@pytest.mark.parametrize(
    "rows",
    [bad_batch(2), batch([TEXT], LAYOUT), batch([PICTURE], LAYOUT), random_batch(4, LAYOUT)],
    ids=["all bad", "text only", "image only", "mixed"],
)
def test_every_parameter_gets_a_gradient(rows: PackedBatch, weights: tuple[float, float]) -> None:
    model = model_of(generation_weight=weights[0], regression_weight=weights[1])
    assert_every_parameter_gets_a_gradient(model, rows)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad and "encoder" not in n}
    assert {name.split(".")[1] for name in frozen} == {"query", "norm_q", "norm_k", "q", "k"}


@pytest.mark.parametrize("microbatch_size", [1, 2, 3])
def test_microbatches_give_the_gradient_of_the_batch(microbatch_size: int) -> None:
    assert_microbatches_agree(Emu, microbatch_size)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", UNEVEN)
def test_uneven_ranks_have_the_gradient_of_one_process(ranks: int) -> None:
    assert_ranks_agree(Emu, ranks)


@pytest.mark.parametrize(
    ("weights", "lengths", "images"),
    [((1.0, 1.0), [8, 5, 8, 4], 3), ((0.0, 1.0), [8, 5, 5, 1], 3), ((1.0, 0.0), [3, 0, 8, 4], 1)],
    ids=str,
)
def test_a_forward_is_what_torch_counts(
    weights: tuple[float, float], lengths: list[int], images: int
) -> None:
    """And neither tokens nor images are there that only a loss of weight 0 would read."""
    model = model_of(generation_weight=weights[0], regression_weight=weights[1])
    documents = [TRAILING, PICTURE, LEADING, TEXT]
    rows = batch(documents, model.layout(TOKENIZER, RULES))
    assert (rows["lengths"], len(rows["pixel_values"])) == (lengths, images)
    assert_idle_work_changes_nothing(model, rows)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(model(rows), rows)
    # torch counts whole score matrices, of which a causal kernel computes half
    above_diagonal = sum(n * (n - 1) // 2 for n in rows["lengths"]) * 4 * EMBED_DIM * 2
    assert sum(model.forward_flops(rows).values()) + above_diagonal == counter.get_total_flops()


@pytest.mark.slow
def test_a_run_with_patch_dropout_resumes_exactly(data: Path, tmp_path: Path) -> None:
    changes = {"device_train_microbatch_size": 2, "algorithms": {"patch_dropout": {"rate": 0.5}}}
    values = settings(data, {"name": "emu"}, **changes)
    assert_resumes_exactly(tmp_path, values | {"evaluation": {}})
