"""Every method sharded over two ranks: the losses and gradients of the plain one, whatever the ranks hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.document import Document
from lcl_composer.errors import ConfigError
from lcl_composer.methods.method import Method
from lcl_composer.models.blocks import blocks_of, recompute
from lcl_composer.models.sharding import shard, whole_tensor
from tests.algorithms.training import as_launched
from tests.distributed import run_ranks
from tests.methods.test_host_waits import METHODS, NAMES, PAIR_METHODS
from tests.models.tiny import (
    IMAGE,
    RULES,
    TOKENIZER,
    bad_batch,
    batch,
    document,
    random_document,
    random_pair,
    tiny_method,
)

pytestmark = pytest.mark.world_size(2)

#: What rank 1 holds beside three good documents on rank 0.
HOLDS = ("images too", "text alone", "nothing good")


def made_for(name: str) -> Callable[[int], Document]:
    """What makes a method's documents of numbers."""
    if name.startswith("classify"):
        return lambda number: document(IMAGE, NAMES[number % len(NAMES)], name=f"d{number}")
    return random_pair if name in PAIR_METHODS else random_document


def rows_of(name: str, holds: str, rank: int, model: Method) -> PackedBatch:
    """A batch of this rank."""
    layout = model.layout(TOKENIZER, RULES)
    made = made_for(name)
    if rank == 0 or holds == "images too" or (holds == "text alone" and name in PAIR_METHODS):
        return batch([made(3 * rank + number) for number in range(3)], layout)
    if holds == "text alone":
        return batch([document("1 2 3", name="a"), document("4 5 6", name="b"), document("7")], layout)
    return bad_batch(3)


def step(model: Method, rows: PackedBatch) -> dict[str, Tensor]:
    """Losses of a forward and backward."""
    losses = model.loss(model(rows), rows)
    losses["total"].backward()
    return {name: loss.detach() for name, loss in losses.items()}


def gradients(model: Method) -> dict[str, Tensor]:
    """The mean over the ranks, which both kinds of training take."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            gradient = whole_tensor(parameter.grad).clone()
            if gradient is parameter.grad or not hasattr(parameter, "placements"):
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
            found[name] = gradient
    return found


def on_a_rank(rank: int, ranks: int) -> dict[str, Any]:
    """Losses and gradients of every method, plain and sharded, in one launch."""
    as_launched(rank, ranks)
    found: dict[str, Any] = {}
    for name, method in {**METHODS, **PAIR_METHODS}.items():
        sharded = tiny_method(method)
        blocks = [block for part in sharded.parts.values() for block in blocks_of(part)]
        recompute(blocks[0])
        shard(sharded, blocks, torch.device("cpu"))
        sharded.to("cpu")  # as a Trainer does, which makes other tensors of DTensors
        for holds in HOLDS:
            plain = tiny_method(method)
            rows = rows_of(name, holds, rank, plain)
            sharded.zero_grad()
            expected, losses = step(plain, rows), step(sharded, rows)
            found[f"{name} {holds}"] = (expected, losses, gradients(plain), gradients(sharded))
    return found


def layer_norm_of_a_gpu(
    original: Any, x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    """In float32, as autocast runs it on a GPU; on a CPU it refuses bfloat16 weights of float32."""
    return original(x.float(), shape, *(p if p is None else p.float() for p in (weight, bias)), eps)


def in_half_precision(rank: int, ranks: int) -> dict[str, Any]:
    """Losses of three steps of every method under autocast to bfloat16, sharded in it, and of fp32's."""
    as_launched(rank, ranks)
    found: dict[str, Any] = {}
    nn.functional.layer_norm = partial(layer_norm_of_a_gpu, nn.functional.layer_norm)
    for name, method in {**METHODS, **PAIR_METHODS}.items():
        plain, sharded = tiny_method(method), tiny_method(method)
        blocks = [block for part in sharded.parts.values() for block in blocks_of(part)]
        seen: set[torch.dtype] = set()
        blocks[0].register_forward_hook(lambda m, *_, seen=seen: seen.update(p.dtype for p in m.parameters()))
        shard(sharded, blocks, torch.device("cpu"), True, torch.bfloat16, torch.float32)
        optimizers = [torch.optim.AdamW(model.parameters(), lr=3e-4) for model in (plain, sharded)]
        losses: list[list[Tensor]] = [[], []]
        for holds in HOLDS:
            rows = rows_of(name, holds, rank, plain)
            for number, model in enumerate((plain, sharded)):
                with torch.autocast("cpu", torch.bfloat16, enabled=model is sharded):
                    losses[number].append(step(model, rows)["total"])
                if model is plain:
                    for parameter, gradient in gradients(plain).items():
                        plain.get_parameter(parameter).grad = gradient
                optimizers[number].step()
                optimizers[number].zero_grad()
        kept = {parameter.dtype for parameter in sharded.parameters()}
        found[name] = (torch.stack(losses[0]), torch.stack(losses[1]), seen, kept)
    return found


def test_batch_norm_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ConfigError, match=r"parallelism\.fsdp: 1 is a BatchNorm"):
        shard(model, [], torch.device("cpu"))


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    return run_ranks(2, on_a_rank)


@pytest.mark.parametrize("holds", HOLDS)
@pytest.mark.parametrize("name", [*METHODS, *PAIR_METHODS])
def test_it_is_the_plain_method(name: str, holds: str, two_ranks: list[dict[str, Any]]) -> None:
    for of_rank in two_ranks:
        expected_losses, losses, expected, found = of_rank[f"{name} {holds}"]
        assert losses.keys() == expected_losses.keys()
        for term, loss in losses.items():
            torch.testing.assert_close(loss, expected_losses[term], rtol=1e-5, atol=1e-6, msg=term)
        assert found.keys() == expected.keys()
        for parameter, gradient in found.items():
            torch.testing.assert_close(gradient, expected[parameter], rtol=1e-4, atol=1e-6, msg=parameter)


@pytest.fixture(scope="module")
def two_ranks_in_half_precision() -> list[dict[str, Any]]:
    return run_ranks(2, in_half_precision)


@pytest.mark.parametrize("name", [*METHODS, *PAIR_METHODS])
def test_bf16_of_it_trains_as_fp32_to_two_percent(
    name: str, two_ranks_in_half_precision: list[dict[str, Any]]
) -> None:
    for of_rank in two_ranks_in_half_precision:
        expected, losses, seen, kept = of_rank[name]
        assert (seen, kept) == ({torch.bfloat16}, {torch.float32}), "gathered in half, kept and stepped whole"
        assert not torch.equal(losses, expected)
        torch.testing.assert_close(losses, expected, rtol=2e-2, atol=1e-2)
