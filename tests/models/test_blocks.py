"""Blocks are found, recomputed and compiled with the outputs and gradients of before."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from lcl_composer.methods.blip2 import BLIP2
from lcl_composer.methods.coca import CoCa
from lcl_composer.methods.flamingo import Flamingo
from lcl_composer.methods.lcl import LCL
from lcl_composer.methods.method import Method
from lcl_composer.models.blocks import blocks_of, compile_block, recompute
from lcl_composer.models.encoder import TimmEncoder
from tests.models.tiny import (
    RULES,
    TOKENIZER,
    batch,
    document,
    gradients,
    random_batch,
    random_document,
    random_pair,
    tiny_encoder,
    tiny_language_model,
    tiny_method,
)

METHODS: dict[str, tuple[Callable[..., Method], Any]] = {
    "lcl": (LCL, random_document),
    "flamingo": (Flamingo, random_document),
    "coca": (partial(CoCa, num_queries=3), random_pair),
    "blip2": (partial(BLIP2, num_queries=3, query_layers=2, query_heads=2), random_pair),
}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    """What one test compiled does not count for the next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def classes_of(network: nn.Module) -> list[str]:
    return [type(block).__name__ for block in blocks_of(network)]


def test_blocks_of_networks():
    assert classes_of(tiny_encoder()) == ["Block", "Block"]
    assert classes_of(tiny_language_model()) == ["OPTDecoderLayer"] * 2
    assert classes_of(tiny_language_model("gpt2")) == ["GPT2Block"] * 2
    assert classes_of(tiny_method(Flamingo).parts["cross_attention"]) == ["GatedCrossAttention"] * 2
    assert classes_of(tiny_method(LCL).parts["pooler"]) == []
    with torch.device("meta"):
        assert classes_of(TimmEncoder("convnext_atto", image_size=64)) == ["ConvNeXtStage"] * 4


def step(model: Method, made: Callable[[int], Any], count: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    rows = batch([made(number) for number in range(count)], model.layout(TOKENIZER, RULES))
    loss = model.loss(model(rows), rows)["total"]
    loss.backward()
    return loss.detach(), gradients(model)


def every_block(model: Method) -> list[nn.Module]:
    return [block for part in model.parts.values() for block in blocks_of(part)]


@pytest.mark.parametrize("name", METHODS)
def test_recomputing_changes_no_bit(name: str):
    method, made = METHODS[name]
    expected_loss, expected = step(tiny_method(method), made)
    model, runs = tiny_method(method), list[str]()
    for block in every_block(model):
        original = block.forward

        def counted(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
            runs.append("run")
            return _original(*args, **kwargs)

        block.forward = counted
        recompute(block)
    names = list(model.state_dict())
    loss, found = step(model, made)
    assert torch.equal(loss, expected_loss)
    assert all(torch.equal(found[parameter], expected[parameter]) for parameter in expected)
    forwards = len(runs)
    assert names == list(tiny_method(method).state_dict())
    model.eval()
    runs.clear()
    with torch.no_grad():
        model(batch([made(0)], model.layout(TOKENIZER, RULES)))
    assert 0 < len(runs) < forwards  # once, where a step runs each twice


def test_dropout_is_the_same_when_recomputed():
    options = {"model_args": {"dropout": 0.4}}
    plain, again = (seeded_lm(options) for _ in range(2))
    for block in blocks_of(again):
        recompute(block)
    outputs = []
    for model in (plain, again):
        torch.manual_seed(5)
        hidden = torch.ones(3, 32, requires_grad=True)
        model(hidden, torch.arange(3), [3]).square().sum().backward()
        outputs.append(hidden.grad)
    assert torch.equal(*outputs)


def seeded_lm(options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return tiny_language_model(**options).train()


@pytest.mark.parametrize("name", METHODS)
def test_compiling_changes_no_more_than_rounding(name: str):
    method, made = METHODS[name]
    expected_loss, expected = step(tiny_method(method), made)
    model = tiny_method(method)
    for number, block in enumerate(every_block(model)):
        compile_block(block, "aot_eager")
        if number % 2:
            recompute(block)
    assert list(model.state_dict()) == list(tiny_method(method).state_dict())
    loss, found = step(model, made)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    for parameter, gradient in found.items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-3, atol=1e-6, msg=parameter)


def test_no_length_is_compiled_for_twice():
    """Twelve batches of other lengths and numbers of images; a blank image and a lone token may differ."""
    model = tiny_method(LCL)
    backend = CompileCounter()
    for block in every_block(model):
        compile_block(block, backend)  # type: ignore[arg-type]
    layout = model.layout(TOKENIZER, RULES)
    compiled = []
    for number in range(12):
        rows = batch([random_document(20 * number + i) for i in range(3 + number)], layout)
        model.loss(model(rows), rows)["total"].backward()
        compiled.append(backend.frame_count)
    assert compiled[-1] == compiled[0]
    rows = batch([document("1 2", name="a")], layout)  # text alone: one blank image
    model.loss(model(rows), rows)["total"].backward()
    with torch.no_grad():
        model.eval()(random_batch(3))
    assert backend.frame_count <= 3 * compiled[0]
