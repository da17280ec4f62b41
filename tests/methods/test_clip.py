"""CLIP's loss and gradients against a plain version, its weights against OpenCLIP's own model, whole runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import Sample, collate, make_sample, num_samples, split_batch
from lcl_composer.data.document import Document, Text
from lcl_composer.data.interleave import LayoutRules
from lcl_composer.data.paired import Paired
from lcl_composer.data.tokenizer import CLIPTokenizer
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.methods.clip import CLIP
from lcl_composer.models.encoder import TimmEncoder
from lcl_composer.models.open_clip import to_open_clip
from lcl_composer.models.pooler import AttentivePooler
from tests.methods.global_batch import (
    UNEVEN,
    assert_every_parameter_gets_a_gradient,
    assert_operations_are_what_torch_counts,
    mean_over_ranks,
)
from tests.methods.open_clips import same_clips
from tests.methods.whole_runs import assert_resumes_exactly, settings
from tests.models.tiny import (
    EMBED_DIM,
    IMAGE,
    RULES,
    TOKENIZER,
    WIDTH,
    bad_batch,
    document,
    gradients,
    random_pair,
    sample,
    tiny_encoder,
    tiny_language_model,
)

PAIR = Paired(TOKENIZER, RULES)


def model_of(**options: Any) -> CLIP:
    torch.manual_seed(0)
    return CLIP(tiny_encoder(), tiny_language_model(), **options)


def samples_of(count: int) -> list[Sample]:
    return [sample(random_pair(index), PAIR) for index in range(count)]


def batch_of(count: int) -> PackedBatch:
    return collate(samples_of(count))


def plain_loss(model: CLIP, rows: PackedBatch, sigmoid: bool) -> Tensor:
    """The loss as CLIP's figure 3 and SigLIP's algorithm 1 write it."""
    outputs = model(rows)
    images, texts = (F.normalize(outputs[k], dim=-1) for k in ("image_features", "text_features"))
    logits = model.logit_scale.exp() * images @ texts.T
    if sigmoid:
        labels = 2 * torch.eye(len(logits)) - 1
        return -F.logsigmoid(labels * (logits + model.logit_bias)).sum() / len(logits)
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@pytest.mark.parametrize("contrastive", ["info_nce", "sigmoid"])
def test_loss_and_gradients_are_those_of_the_papers(contrastive: Any) -> None:
    model, rows = model_of(contrastive=contrastive), batch_of(6)
    loss = model.loss(model(rows), rows)["total"]
    expected = plain_loss(model, rows, contrastive == "sigmoid")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    wanted = torch.autograd.grad(plain_loss(model, rows, contrastive == "sigmoid"), list(model.parameters()))
    for (name, found), grad in zip(gradients(model).items(), wanted, strict=True):
        torch.testing.assert_close(found, grad, rtol=1e-4, atol=1e-5, msg=name)


def test_a_batch_without_a_pair_trains_nothing_and_leaves_no_gradient_out() -> None:
    found = assert_every_parameter_gets_a_gradient(model_of(), bad_batch(2))
    assert all(not gradient.any() for gradient in found.values())


def test_microbatches_add_up_to_losses_of_their_own() -> None:
    """Each microbatch is a batch of its own to the contrast: GradCache is what restores the whole."""
    model, rows = model_of(), batch_of(6)
    parts = split_batch(rows, 3)
    shares = [model.loss(model(part), part)["total"].item() * num_samples(part) / 6 for part in parts]
    expected = [plain_loss(model, part, False).item() / 2 for part in parts]
    assert shares == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "contrastive"), [(2, "info_nce"), (4, "info_nce"), (4, "sigmoid")])
def test_uneven_ranks_have_the_gradient_of_one_process(ranks: int, contrastive: Any) -> None:
    make = partial(model_of, contrastive=contrastive)
    mean, model = mean_over_ranks(make, samples_of, ranks), make()
    loss = plain_loss(model, batch_of(sum(UNEVEN[ranks])), contrastive == "sigmoid")
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), grad in zip(model.named_parameters(), expected, strict=True):
        atol = 1e-6 * max(1.0, grad.abs().max().item())
        torch.testing.assert_close(mean[name], grad, rtol=1e-4, atol=atol, msg=name)


def test_a_pair_is_laid_out_as_open_clip_does() -> None:
    rng = np.random.default_rng(0)
    layout = PAIR(document("3 4 5", IMAGE), rng)
    assert layout.tokens.tolist() == [TOKENIZER.start_of_text, 3, 4, 5, TOKENIZER.end_of_text]
    assert (layout.anchors.tolist(), layout.image_starts.tolist()) == ([4], [-1])
    short = Paired(TOKENIZER, LayoutRules(1, 8))(document(IMAGE, "1 2 3 4 5 6 7 8 9"), rng)
    assert short.tokens.tolist() == [TOKENIZER.start_of_text, 1, 2, 3, 4, 5, 6, TOKENIZER.end_of_text]
    assert short.cut_tokens == 3
    with pytest.raises(
        DataError, match=r"'d': 2 images and 1 texts, not one of each; this method takes pairs"
    ):
        PAIR(document(IMAGE, "1", IMAGE), rng)
    with pytest.raises(DataError, match="its text is empty"):
        PAIR(Document("d", "", (Text(""), IMAGE)), rng)


def test_an_encoder_without_a_class_token_needs_a_pooler() -> None:
    encoder = TimmEncoder("resnet18", image_size=64)
    with pytest.raises(ConfigError, match=r"no class token here; set model\.pooler"):
        CLIP(encoder, tiny_language_model())


@torch.no_grad()
def test_features_are_open_clips_for_the_same_weights() -> None:
    ours, theirs = same_clips()
    captions = ["a red circle", "two small dogs beside a very large tree"]
    pixels = torch.randn(2, 3, 32, 32)
    layout = Paired(CLIPTokenizer(), LayoutRules(16, 24))
    documents = [document(caption, IMAGE, name=caption) for caption in captions]
    laid = [layout(d, np.random.default_rng(0)) for d in documents]
    samples = [
        make_sample(d.id, one, image[None]) for d, one, image in zip(documents, laid, pixels, strict=True)
    ]
    found = ours(collate(samples))
    tokens = open_clip.tokenizer.SimpleTokenizer()(captions, context_length=24)
    torch.testing.assert_close(found["image_features"], theirs.encode_image(pixels), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["text_features"], theirs.encode_text(tokens), rtol=1e-5, atol=1e-5)
    back = to_open_clip(ours.state_dict(), 49408)
    weights = {name: tensor for name, tensor in theirs.state_dict().items() if name != "attn_mask"}
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize("contrastive", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("pooled", [False, True], ids=["class token", "pooler"])
def test_operations_are_what_torch_counts(pooled: bool, contrastive: Any) -> None:
    pooler = AttentivePooler(WIDTH, EMBED_DIM, num_heads=4) if pooled else None
    assert_operations_are_what_torch_counts(model_of(pooler=pooler, contrastive=contrastive))


@pytest.mark.slow
def test_a_run_with_grad_cache_resumes_exactly(pair_data: Path, tmp_path: Path) -> None:
    grad_cache = {"device_train_microbatch_size": 2, "algorithms": {"grad_cache": {}}}
    values = settings(pair_data, {"name": "clip"}, **grad_cache)
    values["model"]["pooler"] = None
    assert_resumes_exactly(tmp_path, values)


def test_embed_dim_is_the_text_towers() -> None:
    assert model_of()(batch_of(3))["image_features"].shape == (3, EMBED_DIM)
