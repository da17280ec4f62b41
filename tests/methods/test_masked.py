"""Masked modelling: what is hidden, who sees whom, loss and gradients against a plain version, whole runs."""

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
from transformers import AutoModel

from lcl_composer.config import compose
from lcl_composer.data.batch import IGNORE, PackedBatch
from lcl_composer.data.masked_text import MaskedText
from lcl_composer.errors import ConfigError
from lcl_composer.methods.masked import Masked
from tests import runs
from tests.methods.global_batch import (
    UNEVEN,
    assert_every_parameter_gets_a_gradient,
    assert_microbatches_agree,
    assert_ranks_agree,
)
from tests.methods.whole_runs import assert_resumes_exactly, settings
from tests.models.tiny import (
    IMAGE,
    RULES,
    TOKENIZER,
    TOKENS_PER_IMAGE,
    bad_batch,
    batch,
    document,
    gradients,
    random_batch,
    tiny_method,
)

LAYOUT = MaskedText(TOKENIZER, RULES, 0.5, 0.15)
HIDDEN = TOKENIZER.image_placeholder
TEN = " ".join(map(str, range(1, 11)))
TEXT, TRAILING = document(TEN, name="text"), document("5 6 7 8", IMAGE, name="trailing")


def drawn(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_share_of_the_text_is_hidden_and_predicts_itself() -> None:
    layout = MaskedText(TOKENIZER, RULES, 0.5, 0.3)
    for row, count in ((document(TEN, IMAGE), 5), (document(TEN), 3), (document("7"), 1)):
        laid_out, shown = layout(row, drawn()), MaskedText(TOKENIZER, RULES, 1e-9, 1e-9)(row, drawn())
        hidden = laid_out.targets != IGNORE
        assert hidden.sum() == count
        assert (laid_out.tokens[hidden] == HIDDEN).all()
        whole = np.where(shown.targets != IGNORE, shown.targets, shown.tokens)
        assert np.array_equal(np.where(hidden, laid_out.targets, laid_out.tokens), whole)
        assert (laid_out.targets[hidden] < TOKENIZER.start_of_text).all()


def test_all_images_are_read_and_none_is_an_anchor() -> None:
    layout = LAYOUT(document(IMAGE, "5 6", IMAGE), drawn())
    assert layout.images.tolist() == [0, 1]
    assert layout.image_starts.tolist() == [1, TOKENS_PER_IMAGE + 5]
    assert layout.anchors.tolist() == [-1, -1]
    assert len(layout.tokens) == 2 * (TOKENS_PER_IMAGE + 2) + 2


def test_other_draws_hide_other_tokens_and_the_same_draw_the_same() -> None:
    places = [LAYOUT(document(TEN, IMAGE), drawn(seed)).targets.tolist() for seed in (0, 0, 1, 2)]
    assert places[0] == places[1]
    assert places[0] not in places[2:]


def test_a_document_without_text_is_empty() -> None:
    layout = LAYOUT(document(IMAGE, IMAGE), drawn())
    assert len(layout.tokens) == len(layout.images) == len(layout.targets) == 0


def plain_loss(model: Masked, rows: PackedBatch, tokens: Tensor | None = None) -> Tensor:
    """Transformers' own attention under a mask of zeros, each document by itself, of these patch tokens."""
    theirs = AutoModel.from_config(model.language_model.backbone.config, attn_implementation="sdpa").double()
    theirs.load_state_dict(model.language_model.backbone.state_dict())
    tokens = model.encoder(rows["pixel_values"]) if tokens is None else tokens
    images = model.pooler.proj(model.pooler.values(tokens))
    losses = []
    for begin, end in pairwise(rows["cu_seqlens"].tolist()):
        embeddings = list(theirs.get_input_embeddings()(rows["tokens"][begin:end]))
        for number, start in enumerate(rows["image_starts"].tolist()):
            if begin <= start < end:
                embeddings[start - begin : start - begin + TOKENS_PER_IMAGE] = list(images[number])
        length = end - begin
        outputs = theirs(
            inputs_embeds=torch.stack(embeddings)[None],
            position_ids=torch.arange(length)[None],
            attention_mask=torch.zeros(1, 1, length, length, dtype=torch.float64),
        ).last_hidden_state[0]
        for position, target in enumerate(rows["targets"][begin:end].tolist()):
            if target != IGNORE:
                logits = model.generation_head(model.generation_norm(outputs[position]))
                losses.append(F.cross_entropy(logits, torch.tensor(target)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("model_type", ["opt", "llama", "gpt2"])
def test_loss_and_gradients_are_those_of_the_paper(model_type: str) -> None:
    model = tiny_method(Masked, model_type).double()
    rows = batch([TEXT, TRAILING, document(IMAGE, "3 4", IMAGE, "9", name="two")], LAYOUT)
    rows["pixel_values"] = rows["pixel_values"].double() / 128 - 1
    loss, expected = model.loss(model(rows), rows)["total"], plain_loss(model, rows)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    image_side = {n: p for n, p in model.named_parameters() if p.requires_grad and "language" not in n}
    wanted = torch.autograd.grad(expected, list(image_side.values()))
    found = gradients(model)
    for name, gradient in zip(image_side, wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_hidden_token_sees_what_follows_in_its_document_and_in_no_other() -> None:
    model = tiny_method(Masked)
    rows = batch([TRAILING, document("1 2", IMAGE, name="other")], LAYOUT)
    changed: PackedBatch = {**rows, "pixel_values": rows["pixel_values"].clone()}  # type: ignore[typeddict-item]
    changed["pixel_values"][0] = 255 - changed["pixel_values"][0]
    with torch.no_grad():
        moved = (model(rows)["hidden"] - model(changed)["hidden"]).abs().amax(1) > 0
    assert moved.tolist() == [True, True, False]


@pytest.mark.parametrize(
    "rows",
    [bad_batch(2), batch([TEXT], LAYOUT), random_batch(4, LAYOUT)],
    ids=["all bad", "text only", "mixed"],
)
def test_every_parameter_gets_a_gradient(rows: PackedBatch) -> None:
    assert_every_parameter_gets_a_gradient(tiny_method(Masked), rows)


@pytest.mark.parametrize("microbatch_size", [1, 2, 3])
def test_microbatches_give_the_gradient_of_the_batch(microbatch_size: int) -> None:
    assert_microbatches_agree(Masked, microbatch_size)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", UNEVEN)
def test_uneven_ranks_have_the_gradient_of_one_process(ranks: int) -> None:
    assert_ranks_agree(Masked, ranks)


def test_a_forward_is_what_torch_counts() -> None:
    model, rows = tiny_method(Masked).eval(), random_batch(6, LAYOUT)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        outputs = model(rows)
        outputs["hidden"] @ model.generation_head.weight.T
    assert sum(model.forward_flops(rows).values()) == counter.get_total_flops()


def values_of(data: Path, **method: Any) -> dict[str, Any]:
    return settings(data, {"name": "masked", **method}) | {"evaluation": {}}


@pytest.mark.slow
def test_a_run_resumes_exactly(data: Path, tmp_path: Path) -> None:
    assert_resumes_exactly(tmp_path, values_of(data))


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5])
def test_a_ratio_that_is_no_share_is_refused(data: Path, tmp_path: Path, ratio: float) -> None:
    with pytest.raises(ConfigError, match=rf"method\.mask_ratio: is {ratio}, must be above 0 and at most 1"):
        compose(runs.write_yaml(tmp_path, values_of(data, mask_ratio=ratio)), [])
