"""Retrieval: losses and gradients against a plain version, over ranks and microbatches, whole frozen runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lcl_composer.config import compose
from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import Sample, bad_sample, collate, num_samples, split_batch
from lcl_composer.data.document import Document, Text
from lcl_composer.data.shared_memory import clean_shared_memory
from lcl_composer.errors import ConfigError
from lcl_composer.evaluation.outcomes import read_outcomes
from lcl_composer.methods.build import build_model
from lcl_composer.methods.retrieve import Retrieve
from lcl_composer.models.pooler import AttentivePooler
from lcl_composer.models.text_encoder import TextEncoder
from tests import runs
from tests.algorithms.training import as_launched
from tests.distributed import run_ranks
from tests.methods.whole_runs import assert_resumes_exactly, pairs, settings
from tests.models.tiny import (
    EMBED_DIM,
    IMAGE,
    IMAGE_SIZE,
    MAX_TOKENS,
    RULES,
    TOKENIZER,
    WIDTH,
    bad_batch,
    document,
    gradients,
    sample,
    tiny_encoder,
    tiny_language_model,
)

#: Text towers and what stands for a text in each.
FORMS = {"causal": "end", "both ways": "mean", "both ways, first": "start"}


def model_of(form: str = "causal", **options: Any) -> Retrieve:
    torch.manual_seed(0)
    sizes = {"hidden_size": EMBED_DIM, "num_hidden_layers": 2, "num_attention_heads": 2}
    both_ways = lambda: TextEncoder(TOKENIZER.vocab_size, max_position_embeddings=MAX_TOKENS, **sizes)  # noqa: E731
    texts = tiny_language_model() if form == "causal" else both_ways()
    pooler = AttentivePooler(WIDTH, EMBED_DIM, num_heads=4)
    return Retrieve(tiny_encoder(), pooler, texts, text_pooling=FORMS[form], **options)  # type: ignore[arg-type]


def samples_of(count: int) -> list[Sample]:
    layout, made = model_of().layout(TOKENIZER, RULES), []
    for index in range(count):
        texts = [
            " ".join(str(1 + (index * 7 + i * i) % 58) for i in range(1 + (index + n) % 5)) for n in range(3)
        ]
        made.append(sample(document(IMAGE, *texts, name=f"d{index}"), layout, seed=index))
    return made


def batch_of(count: int) -> PackedBatch:
    return collate(samples_of(count))


def plain_features(model: Retrieve, rows: PackedBatch) -> tuple[Tensor, Tensor]:
    """Each image and each text for itself, pooled by hand."""
    images, texts = [], []
    first = 0
    for length, pixels in zip(rows["lengths"], rows["pixel_values"], strict=True):
        images.append(model.pooler(model.encoder(pixels[None]))[0])
        alone = {"tokens": rows["tokens"][first : first + length], "positions": torch.arange(length)}
        outputs = model.language_model.read({**alone, "lengths": [length]})  # type: ignore[typeddict-item]
        chosen = {"end": outputs[-1], "start": outputs[0], "mean": outputs.mean(0)}[model.text_pooling]
        texts.append(model.text_proj(model.text_norm(chosen)))
        first += length
    return torch.stack(images), torch.stack(texts)


def plain_loss(model: Retrieve, rows: PackedBatch, sigmoid: bool = False) -> Tensor:
    images, texts = (F.normalize(side, dim=-1) for side in plain_features(model, rows))
    logits, labels = model.logit_scale.exp() * images @ texts.T, torch.arange(len(images))
    if sigmoid:
        signs = 2 * torch.eye(len(logits)) - 1
        return -F.logsigmoid(signs * (logits + model.logit_bias)).sum() / len(logits)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("contrastive", ["info_nce", "sigmoid"])
def test_loss_and_gradients_are_those_of_the_plain_version(form: str, contrastive: Any) -> None:
    model, rows = model_of(form, contrastive=contrastive), batch_of(5)
    loss = model.loss(model(rows), rows)["total"]
    torch.testing.assert_close(loss, plain_loss(model, rows, contrastive == "sigmoid"), rtol=1e-5, atol=1e-5)
    loss.backward()
    expected = torch.autograd.grad(
        plain_loss(model, rows, contrastive == "sigmoid"), list(model.parameters())
    )
    for (name, found), grad in zip(gradients(model).items(), expected, strict=True):
        torch.testing.assert_close(found, grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_without_a_pair_trains_nothing_and_leaves_no_gradient_out(form: str) -> None:
    model, rows = model_of(form), bad_batch(2)
    model.loss(model(rows), rows)["total"].backward()
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_microbatches_add_up_to_losses_of_their_own() -> None:
    model, rows = model_of("both ways"), batch_of(6)
    parts = split_batch(rows, 3)
    shares = [model.loss(model(part), part)["total"].item() * num_samples(part) / 6 for part in parts]
    assert shares == pytest.approx([plain_loss(model, part).item() / 2 for part in parts], rel=1e-5)


#: Pairs of each of two ranks of four documents; the others are bad, so that a rank may have none.
UNEVEN = ([4, 1], [0, 3])


def gradients_of_a_rank(rank: int, ranks: int) -> list[dict[str, Tensor]]:
    """One rank's gradients, by split and form; DDP takes their mean."""
    as_launched(rank, ranks)
    found = []
    for split in UNEVEN:
        mine = samples_of(8)[sum(split[:rank]) : sum(split[: rank + 1])]
        rows = collate([*mine, *(bad_sample(f"bad-{i}", "test", IMAGE_SIZE) for i in range(4 - len(mine)))])
        for form in FORMS:
            model = model_of(form)
            model.loss(model(rows), rows)["total"].backward()
            found.append(gradients(model))
    return found


@pytest.mark.slow
def test_uneven_ranks_have_the_gradient_of_one_process() -> None:
    found = run_ranks(2, gradients_of_a_rank)
    for number, (split, form) in enumerate((split, form) for split in UNEVEN for form in FORMS):
        model = model_of(form)
        expected = torch.autograd.grad(plain_loss(model, batch_of(sum(split))), list(model.parameters()))
        for (name, _), grad in zip(model.named_parameters(), expected, strict=True):
            mean = torch.stack([of_rank[number][name] for of_rank in found]).mean(0)
            atol = 2e-6 * max(1.0, grad.abs().max().item())
            torch.testing.assert_close(mean, grad, rtol=1e-4, atol=atol, msg=f"{split} {form}: {name}")


def test_a_frozen_encoder_costs_no_gradient() -> None:
    """LiT: nothing of the encoder, nor of a frozen text tower, enters the graph."""
    model, rows = model_of("both ways"), batch_of(4)
    whole = sum(model.forward_flops(rows).values())
    model.encoder.requires_grad_(False)
    assert not model.patch_tokens(rows).requires_grad
    assert model(rows)["image_features"].requires_grad
    parts = model.forward_flops(rows)
    assert model.flops_per_batch(rows) == 3 * whole - 2 * parts["encoder"]
    model.language_model.requires_grad_(False)
    assert not model.language_model.read(rows).requires_grad
    model.loss(model(rows), rows)["total"].backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"pooler", "text_norm", "text_proj", "logit_scale"}


@pytest.mark.parametrize("form", ["causal", "both ways"])
def test_a_forward_is_what_torch_counts(form: str) -> None:
    model, rows = model_of(form).eval(), batch_of(5)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(rows)
    # torch counts whole score matrices, of which a causal kernel computes half; the pooler folds its query
    # into the keys once a batch, and no image's slots are read
    pairs_above = sum(n * (n - 1) // 2 for n in rows["lengths"]) if form == "causal" else 0
    query = 2 * model.pooler.q.weight.numel() + 2 * model.pooler.k.weight.numel()
    assert sum(model.forward_flops(rows).values()) + 4 * pairs_above * EMBED_DIM * 2 + query == (
        counter.get_total_flops()
    )


def captioned(count: int) -> list[Document]:
    """Pairs of which every second has a caption more."""
    return [
        Document(d.id, d.source, (*d.segments, Text(f"more {i}")) if i % 2 else d.segments)
        for i, d in enumerate(pairs(count))
    ]


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield runs.write_data(tmp_path / "data", captioned(30))
    clean_shared_memory()


def frozen_settings(data: Path) -> dict[str, Any]:
    """A frozen encoder and a text encoder from config, in microbatches with GradCache."""
    values = settings(
        data,
        {"name": "retrieve", "text_pooling": "mean"},
        device_train_microbatch_size=2,
        algorithms={"grad_cache": {}, "layer_freezing": {"parts": ["encoder"]}},
        evaluation={"caption_retrieval": {}},
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    values["model"]["language_model"] = {"name": "text_encoder", "max_position_embeddings": 64, **sizes}
    return values


@pytest.mark.slow
def test_a_frozen_run_resumes_exactly_and_measures_every_caption(data: Path, tmp_path: Path) -> None:
    values = frozen_settings(data)
    assert_resumes_exactly(tmp_path, values)
    torch.manual_seed(17)
    untrained = build_model(compose(tmp_path / "experiment.yaml", []).run, 300)
    exported = load_file(tmp_path / "runs/whole/encoder/model.safetensors")
    start = dict(untrained.encoder.backbone.state_dict())
    assert exported.keys() == start.keys()
    assert all(torch.equal(exported[name], start[name]) for name in start)
    found = read_outcomes(tmp_path / "runs/whole", "caption_retrieval")
    assert found is not None
    counts = found.tallies["text_to_image/recall@1"].counts
    documents = captioned(30)
    assert counts is not None
    assert (len(found.images), sum(counts)) == (len(documents), sum(len(d.segments) - 1 for d in documents))
    assert (tmp_path / "runs/whole/gallery.json").is_file()


def test_only_retrieve_takes_a_text_encoder(data: Path, tmp_path: Path) -> None:
    values = frozen_settings(data)
    compose(runs.write_yaml(tmp_path, values), [])
    with pytest.raises(ConfigError, match=r"attends both ways, and the method 'lcl' wants a causal one"):
        compose(runs.write_yaml(tmp_path, values | {"method": {"name": "lcl"}}), [])
    del values["data"]["eval"]
    with pytest.raises(ConfigError, match=r"evaluation\.caption_retrieval: searches held-out documents"):
        compose(runs.write_yaml(tmp_path, values), [])
