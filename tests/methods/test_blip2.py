"""BLIP-2's losses and gradients against plain versions, over ranks and microbatches; whole runs."""

from __future__ import annotations

from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from lcl_composer.algorithms.grad_cache import GradCache
from lcl_composer.config import compose
from lcl_composer.data.batch import IGNORE, PackedBatch
from lcl_composer.data.collate import Sample, bad_sample, collate, num_samples, split_batch
from lcl_composer.data.paired import Paired
from lcl_composer.errors import ConfigError
from lcl_composer.methods.blip2 import BLIP2
from tests import runs
from tests.algorithms import training
from tests.methods.global_batch import UNEVEN, assert_idle_work_changes_nothing, mean_over_ranks
from tests.methods.test_hard_negatives import plain_draw
from tests.methods.whole_runs import assert_resumes_exactly, settings
from tests.models.tiny import (
    EMBED_DIM,
    IMAGE,
    IMAGE_SIZE,
    RULES,
    TOKENIZER,
    bad_batch,
    document,
    gradients,
    random_pair,
    sample,
    tiny_method,
)

QUERIES = 3
LAYOUT = Paired(TOKENIZER, RULES, predicts=True, slots=QUERIES)
TERMS = ("contrastive", "generation", "matching")


def model_of(**options: Any) -> BLIP2:
    sizes: dict[str, Any] = {"num_queries": QUERIES, "query_layers": 2, "query_heads": 2}
    model = tiny_method(BLIP2, **(sizes | options))
    with torch.no_grad():
        model.query_transformer.queries.mul_(50)  # so that which query is the nearest differs by text
    return model


#: Which of TERMS have a weight.
WEIGHTS = [w for w in product((1, 0), repeat=3) if any(w)]


def weighted(weights: tuple[int, int, int]) -> BLIP2:
    return model_of(**{f"{name}_weight": float(w) for name, w in zip(TERMS, weights, strict=True)})


def samples_of(count: int) -> list[Sample]:
    made = []
    for index in range(count):
        made.append(sample(random_pair(index), LAYOUT))
        rng = np.random.default_rng(index)  # `sample` draws every document's alike
        made[-1]["seeds"] = rng.integers(-(2**63), 2**63 - 1, 1)
    return made


def batch_of(count: int) -> PackedBatch:
    return collate(samples_of(count))


def read_alone(model: Any, tokens: Tensor, image: Tensor | None) -> Tensor:
    """Outputs of one text, the tokens of an image before it or none."""
    rows = model.language_model.embed(tokens)
    rows = rows if image is None else torch.cat([image, rows])
    return model.language_model(rows, torch.arange(len(rows)), [len(rows)])


def plain_losses(model: Any, rows: PackedBatch) -> dict[str, Tensor]:
    """The three losses pair by pair, as the class writes them."""
    bounds = [(a, b) for a, b in pairwise(rows["cu_seqlens"].tolist()) if b > a]
    texts = [rows["tokens"][a + QUERIES : b] for a, b in bounds]
    queries = model.query_transformer(model.encoder(rows["pixel_values"]))
    images = model.token_proj(queries)
    ends = torch.stack([read_alone(model, text, None)[-1] for text in texts])
    sides = (
        F.normalize(model.query_proj(queries), dim=-1),
        F.normalize(model.context_proj(model.context_norm(ends)), dim=-1),
    )
    logits = model.logit_scale.exp() * torch.stack([(image @ sides[1].T).amax(0) for image in sides[0]])
    labels = torch.arange(len(logits))
    contrastive = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    words, matches = [], []
    seeds = rows["seeds"].tolist()
    for p, text in enumerate(texts):
        outputs = read_alone(model, text, images[p])
        vocabulary = model.generation_head(model.generation_norm(outputs))
        words += [F.cross_entropy(vocabulary[QUERIES + t], text[t + 1]) for t in range(len(text) - 1)]
        wrong = plain_draw(logits[:, p].tolist(), seeds[p], seeds, p, 2)
        assert len(wrong) == 2
        for label, image in ((1, p), *((0, other) for other in wrong)):
            match = model.match_head(read_alone(model, text, images[image])[-1])
            matches.append(F.cross_entropy(match, torch.tensor(label)))
    return {
        "contrastive": contrastive,
        "generation": torch.stack(words).mean(),
        "matching": torch.stack(matches).mean(),
    }


def assert_gradients(found: dict[str, Tensor], loss: Tensor, model: BLIP2) -> None:
    """Against those of a plain loss, a parameter that it does not read having none."""
    named = dict(model.named_parameters())
    expected = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    for (name, parameter), grad in zip(named.items(), expected, strict=True):
        wanted = torch.zeros_like(parameter) if grad is None else grad
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=2e-6, msg=name)


def test_an_image_stands_before_its_text() -> None:
    layout = LAYOUT(document(IMAGE, "3 4 5"), np.random.default_rng(0))
    slot, start, end = TOKENIZER.image_placeholder, TOKENIZER.start_of_text, TOKENIZER.end_of_text
    assert layout.tokens.tolist() == [slot, slot, slot, start, 3, 4, 5, end]
    assert layout.targets.tolist() == [IGNORE, IGNORE, IGNORE, 3, 4, 5, end, IGNORE]
    assert (layout.image_starts.tolist(), layout.anchors.tolist()) == ([0], [7])
    long = LAYOUT(document(IMAGE, "1 " * 60), np.random.default_rng(0))
    assert (len(long.tokens), long.cut_tokens) == (RULES.max_tokens, 60 + QUERIES + 2 - RULES.max_tokens)
    with pytest.raises(ConfigError, match="40 cannot hold an image of 38 tokens and a text"):
        model_of(num_queries=38).layout(TOKENIZER, RULES)


@pytest.mark.parametrize("name", TERMS)
def test_each_loss_and_its_gradients_are_the_plain_ones(name: str) -> None:
    weights = {f"{term}_weight": float(term == name) for term in TERMS}
    model, rows = model_of(**weights), batch_of(6)
    losses = model.loss(model(rows), rows)
    assert set(losses) == {name, "total"}
    torch.testing.assert_close(losses[name], plain_losses(model, rows)[name], rtol=1e-5, atol=1e-6)
    losses["total"].backward()
    assert_gradients(gradients(model), plain_losses(model, rows)[name], model)


def test_bad_documents_have_no_say() -> None:
    model, rows = model_of(), batch_of(4)
    among = collate([
        bad_sample("x", "test", IMAGE_SIZE), *samples_of(4), bad_sample("y", "test", IMAGE_SIZE)
    ])  # fmt: skip
    wanted, found = model.loss(model(rows), rows), model.loss(model(among), among)
    for name in TERMS:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_pairs_leave_no_gradient_out(count: int) -> None:
    """A pair alone has no wrong image, of two pairs each has one."""
    model, rows = model_of(), batch_of(count) if count else bad_batch(2)
    losses = model.loss(model(rows), rows)
    losses["total"].backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    assert any(gradient.any() for gradient in gradients(model).values()) == (count > 0)
    assert (losses["matching"] > 0) == (count > 0)


def test_microbatches_add_up_to_losses_of_their_own() -> None:
    model, rows = model_of(), batch_of(6)
    parts = split_batch(rows, 3)
    for name in ("contrastive", "matching"):
        shares = [model.loss(model(part), part)[name].item() * num_samples(part) / 6 for part in parts]
        expected = [plain_losses(model, part)[name].item() / 2 for part in parts]
        assert shares == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", UNEVEN)
def test_uneven_ranks_have_the_gradient_of_one_process(ranks: int) -> None:
    mean, model = mean_over_ranks(model_of, samples_of, ranks), model_of()
    loss = torch.stack(list(plain_losses(model, batch_of(sum(UNEVEN[ranks]))).values())).sum()
    assert_gradients(mean, loss, model)


def trained(model: BLIP2, micro: int, algorithms: list[Any], monkeypatch: Any) -> dict[str, Tensor]:
    """Gradients of a step on six pairs."""
    loader = DataLoader(training.Batches([batch_of(6)]), batch_size=None)
    spec = training.DataSpec(loader, split_batch=split_batch, get_num_samples_in_batch=num_samples)
    monkeypatch.setattr(training, "data", lambda count: spec)
    record = training.Record()
    make: Any = partial(training.make_trainer, algorithms, [record], duration="1ba", batch_count=1)
    make(model=model, micro=micro).fit()
    return record.gradients[-1]


def test_grad_cache_restores_the_contrast_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cached, cut = (
        trained(model_of(matching_weight=0.0), micro, algorithms, monkeypatch)
        for micro, algorithms in ((6, []), (2, [GradCache()]), (2, []))
    )
    for name, gradient in whole.items():
        torch.testing.assert_close(cached[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert not torch.allclose(cut["query_proj.weight"], whole["query_proj.weight"], rtol=1e-2)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_operations_are_those_that_torch_counts(weights: tuple[int, int, int]) -> None:
    """And a loss of weight 0 costs none: no reading of a text, no projection that it alone reads."""
    model, rows = weighted(weights).requires_grad_(False), batch_of(5)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(model(rows), rows)
    counted = counter.get_total_flops()
    # Torch counts whole squares of attention, and the contrast's and the draw's similarities.
    contrasts, writes, matches = weights
    read = [n for n in rows["lengths"] for _ in range(1 + 2) if matches]
    read += [n - 1 for n in rows["lengths"] if writes and not matches]
    read += [n - QUERIES for n in rows["lengths"] if contrasts or matches]
    triangles = 4 * EMBED_DIM * 2 * sum(n * n - n * (n + 1) // 2 for n in read)
    similarities = (contrasts + matches) * 2 * 5 * QUERIES * 5 * EMBED_DIM
    assert sum(model.forward_flops(rows).values()) == counted - triangles - similarities


@pytest.mark.parametrize("weights", WEIGHTS[1:], ids=str)
@pytest.mark.parametrize("rows", [batch_of(3), bad_batch(2)], ids=["pairs", "all bad"])
def test_a_loss_of_weight_0_leaves_every_gradient(rows: PackedBatch, weights: tuple[int, int, int]) -> None:
    model = weighted(weights)
    assert_idle_work_changes_nothing(model, rows)
    pairs, outputs = len(rows["anchors"]), model(rows)
    assert len(outputs["text_features"]) == (pairs if weights[0] or weights[2] else 0)
    assert len(outputs["matched"]) == (pairs if weights[2] else 0)
    assert [len(model.eval()(rows)[name]) for name in ("image_features", "matched")] == [pairs, pairs]


def values_of(data: Path, **changes: Any) -> dict[str, Any]:
    sizes = {"num_queries": 4, "query_layers": 1, "query_heads": 2}
    values = settings(data, {"name": "blip2", **sizes}, **changes)
    values["model"]["pooler"] = None
    return values


@pytest.mark.parametrize("name", ["num_queries", "query_layers", "query_heads"])
def test_sizes_below_1_are_refused_where_they_stand(pair_data: Path, tmp_path: Path, name: str) -> None:
    values = values_of(pair_data)
    values["method"][name] = 0
    with pytest.raises(ConfigError, match=rf"yaml:\d+: method\.{name}: is 0, must be at least 1"):
        compose(runs.write_yaml(tmp_path, values), [])


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.query_heads is 5, .*hidden_size, 32; change one"):
        model_of(query_heads=5)


def test_matching_under_grad_cache_is_refused(pair_data: Path, tmp_path: Path) -> None:
    values = values_of(pair_data, device_train_microbatch_size=2, algorithms={"grad_cache": {}})
    with pytest.raises(ConfigError, match=r"grad_cache: cannot restore .* method\.matching_weight; set that"):
        compose(runs.write_yaml(tmp_path, values), [])
    values["method"]["matching_weight"] = 0.0
    compose(runs.write_yaml(tmp_path, values), [])


@pytest.mark.slow
def test_a_run_resumes_exactly(pair_data: Path, tmp_path: Path) -> None:
    assert_resumes_exactly(tmp_path, values_of(pair_data, device_train_microbatch_size=2))
