"""CoCa's losses against a plain version a pair at a time, its gradients over ranks, whole runs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lcl_composer.config import compose
from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import Sample, collate, split_batch
from lcl_composer.data.paired import Paired
from lcl_composer.errors import ConfigError
from lcl_composer.methods.coca import CoCa
from tests import runs
from tests.methods.global_batch import (
    UNEVEN,
    assert_every_parameter_gets_a_gradient,
    assert_idle_work_changes_nothing,
    mean_over_ranks,
)
from tests.methods.whole_runs import assert_resumes_exactly, settings
from tests.models.tiny import (
    EMBED_DIM,
    RULES,
    TOKENIZER,
    TOKENS_PER_IMAGE,
    bad_batch,
    gradients,
    random_pair,
    sample,
    tiny_method,
)

PAIR = Paired(TOKENIZER, RULES, predicts=True)


def model_of(**options: Any) -> CoCa:
    return tiny_method(CoCa, **{"num_queries": 3, **options})


def samples_of(count: int) -> list[Sample]:
    return [sample(random_pair(index), PAIR) for index in range(count)]


def batch_of(count: int) -> PackedBatch:
    return collate(samples_of(count))


def plain_loss(model: CoCa, rows: PackedBatch, weights: tuple[float, float] = (1.0, 2.0)) -> Tensor:
    """The paper's losses a pair at a time, without a packed batch."""
    bounds, images, texts, logits = rows["cu_seqlens"].tolist(), [], [], []
    for first, last, pixels in zip(bounds, bounds[1:], rows["pixel_values"], strict=False):
        tokens = rows["tokens"][first:last]
        embeddings = model.language_model.embed(tokens)
        outputs = model.language_model(embeddings, torch.arange(len(tokens)), [len(tokens)])
        seen = model.captioning_pooler(model.encoder(pixels[None]))
        images.append(model.image_proj(model.image_norm(model.contrastive_pooler(seen)[0, 0])))
        texts.append(model.context_proj(model.context_norm(outputs[-1])))
        decoded = model.multimodal_decoder(outputs[:-1], [len(tokens) - 1], seen)
        logits.append(model.generation_head(model.generation_norm(decoded)))
    captions = torch.cat([rows["tokens"][a + 1 : b] for a, b in pairwise(bounds)])
    similarity = F.normalize(torch.stack(images), dim=-1) @ F.normalize(torch.stack(texts), dim=-1).T
    scores, labels = model.logit_scale.exp() * similarity, torch.arange(len(images))
    contrast = (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2
    return weights[0] * contrast + weights[1] * F.cross_entropy(torch.cat(logits), captions)


def assert_gradients(found: dict[str, Tensor], model: CoCa, loss: Tensor, **tolerance: float) -> None:
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), grad in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[name], grad, msg=lambda text, n=name: f"{n}: {text}", **tolerance)


def whole_loss(model: CoCa, rows: PackedBatch) -> Tensor:
    """In one process and one microbatch."""
    return model.loss(model(rows), rows)["total"]


def test_loss_and_gradients_are_those_of_the_paper() -> None:
    model, rows = model_of(), batch_of(5)
    loss = whole_loss(model, rows)
    torch.testing.assert_close(loss, plain_loss(model, rows), rtol=1e-5, atol=1e-6)
    loss.backward()
    assert_gradients(gradients(model), model, plain_loss(model, rows), rtol=1e-4, atol=1e-5)


def test_the_text_tower_sees_no_image_and_a_caption_sees_its_own() -> None:
    model, rows = model_of(), batch_of(3)
    changed: PackedBatch = {**rows, "pixel_values": rows["pixel_values"].clone()}  # type: ignore[typeddict-item]
    changed["pixel_values"][1] = 255 - changed["pixel_values"][1]
    with torch.no_grad():
        before, after = model(rows), model(changed)
    assert torch.equal(before["text_features"], after["text_features"])
    assert (before["image_features"] != after["image_features"]).any(1).tolist() == [False, True, False]
    moved = (before["hidden"] != after["hidden"]).any(1).split([n - 1 for n in rows["lengths"]])
    assert [bool(one.all()) for one in moved] == [bool(one.any()) for one in moved] == [False, True, False]


def test_the_decoder_runs_no_token_that_predicts_nothing() -> None:
    model, rows, seen = model_of(), batch_of(3), []
    layer: Any = model.multimodal_decoder.layers[0]
    layer.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    model(rows)
    assert seen == [len(rows["tokens"]) - 3]


def test_latents_are_what_the_contrast_reads() -> None:
    model, rows = model_of(), batch_of(3)
    latents, tokens = model.encode_images(rows["pixel_values"])
    assert tokens.shape[1] == TOKENS_PER_IMAGE
    assert latents is not None
    assert latents.shape == (3, EMBED_DIM)
    assert torch.equal(latents, model(rows)["image_features"])


def test_a_batch_without_a_pair_trains_nothing_and_leaves_no_gradient_out() -> None:
    found = assert_every_parameter_gets_a_gradient(model_of(), bad_batch(2))
    assert all(not gradient.any() for gradient in found.values())


def test_microbatches_add_up_to_contrasts_of_their_own() -> None:
    """Captions are those of the batch; GradCache is what restores the whole contrast."""
    model, rows = model_of(contrastive_weight=0.0), batch_of(6)
    for part in split_batch(rows, 4):
        (whole_loss(model, part) * len(part["ids"]) / 6).backward()
    expected = torch.autograd.grad(plain_loss(model, rows, (0.0, 2.0)), list(model.parameters()))
    for (name, found), grad in zip(gradients(model).items(), expected, strict=True):
        torch.testing.assert_close(found, grad, rtol=1e-3, atol=1e-6, msg=name)


WEIGHTS = [(1.0, 2.0), (0.0, 2.0), (1.0, 0.0)]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_operations_are_what_torch_counts(weights: tuple[float, float]) -> None:
    """And a loss of weight 0 costs none, but that of a blank token which keeps the decoder in the graph."""
    model = model_of(contrastive_weight=weights[0], captioning_weight=weights[1])
    rows, contrasts, captions = batch_of(4), weights[0] > 0, weights[1] > 0
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(model(rows), rows)
    counted = model.forward_flops(rows)
    assert (counted["contrastive_pooler"] > 0, counted["multimodal_decoder"] > 0) == (contrasts, captions)
    layer: Any = model.multimodal_decoder.layers[0]
    blank = 0 if captions else 2 * (layer.self_attention.flops([1]) + layer.feed_forward.flops(1))
    queries = 2 * (3 + 1) * model.captioning_pooler.q.weight.numel()  # of both poolers, once a batch
    similarities = 2 * 4 * 4 * EMBED_DIM if contrasts else 0
    # torch counts whole score matrices, of which a causal kernel computes half
    run = [n if contrasts else n - 1 for n in rows["lengths"]]
    run += [n - 1 for n in rows["lengths"] if captions]
    above = sum(4 * n * (n - 1) // 2 * EMBED_DIM * 2 for n in run)
    assert sum(counted.values()) + blank + queries + similarities + above == counter.get_total_flops()


@pytest.mark.parametrize("weights", WEIGHTS[1:], ids=str)
@pytest.mark.parametrize("rows", [batch_of(3), bad_batch(2)], ids=["pairs", "all bad"])
def test_a_loss_of_weight_0_leaves_every_gradient(rows: PackedBatch, weights: tuple[float, float]) -> None:
    model = model_of(contrastive_weight=weights[0], captioning_weight=weights[1])
    assert_idle_work_changes_nothing(model, rows)
    pairs = len(rows["anchors"])
    assert len(model(rows)["image_features"]) == (pairs if weights[0] else 0)
    assert len(model.eval()(rows)["image_features"]) == pairs  # an evaluation may read them


@pytest.mark.slow
@pytest.mark.parametrize("ranks", UNEVEN)
def test_uneven_ranks_have_the_gradient_of_one_process(ranks: int) -> None:
    mean = mean_over_ranks(model_of, samples_of, ranks)
    model, rows = model_of(), batch_of(sum(UNEVEN[ranks]))
    assert_gradients(mean, model, whole_loss(model, rows), rtol=1e-4, atol=4e-6)


def values_of(data: Path, **method: Any) -> dict[str, Any]:
    late = {"start": 0.0, "end": 1.0, "begin": "4ba", "until": "4ba"}
    algorithms = {"grad_cache": {}, "contrastive_weight": late}
    grad_cache = {"device_train_microbatch_size": 2, "algorithms": algorithms}
    values = settings(data, {"name": "coca", "num_queries": 3, **method}, **grad_cache)
    values["model"]["pooler"] = None
    return values


@pytest.mark.slow
def test_a_run_with_grad_cache_resumes_exactly(pair_data: Path, tmp_path: Path) -> None:
    """The contrast begins on the way: until then it is neither computed nor cached, and is evaluated."""
    assert_resumes_exactly(tmp_path, values_of(pair_data))


@pytest.mark.parametrize("name", ["multimodal_layers", "num_queries"])
def test_sizes_below_1_are_refused(pair_data: Path, tmp_path: Path, name: str) -> None:
    path = runs.write_yaml(tmp_path, values_of(pair_data, **{name: 0}))
    with pytest.raises(ConfigError, match=f"{name}: is 0, must be at least 1"):
        compose(path, [])
