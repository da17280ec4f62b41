"""Gradients over microbatches, uneven ranks and odd batches, against those of one process with all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import Sample, bad_sample, collate, num_samples, split_batch
from lcl_composer.data.document import Document
from lcl_composer.methods.method import Method
from tests.algorithms.training import as_launched
from tests.distributed import run_ranks
from tests.models.tiny import (
    EMBED_DIM,
    IMAGE_SIZE,
    RULES,
    TOKENIZER,
    WIDTH,
    batch,
    gradients,
    random_document,
    random_pair,
    sample,
    tiny_method,
)

#: The document of a number.
Documents = Callable[[int], Document]

#: Documents of each rank of four; the others are bad, so that a rank may have none.
UNEVEN = {2: [4, 1], 4: [0, 4, 1, 3]}


def rows_of(model: Method, count: int, made: Documents) -> PackedBatch:
    """The first documents in one batch."""
    return batch([made(number) for number in range(count)], model.layout(TOKENIZER, RULES))


def whole_gradients(method: Callable[..., Method], count: int, made: Documents) -> dict[str, Tensor]:
    """Gradients of one process with these documents in one batch."""
    model = tiny_method(method)
    rows = rows_of(model, count, made)
    model.loss(model(rows), rows)["total"].backward()
    return gradients(model)


def assert_microbatches_agree(
    method: Callable[..., Method], microbatch_size: int, made: Documents = random_document
) -> None:
    """Losses weighted as Composer does add up to the gradient of seven documents together."""
    model = tiny_method(method)
    for part in split_batch(rows_of(model, 7, made), microbatch_size):
        (num_samples(part) / 7 * model.loss(model(part), part)["total"]).backward()
    expected = whole_gradients(method, 7, made)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def assert_ranks_agree(method: Callable[..., Method], ranks: int, made: Documents = random_document) -> None:
    """The mean over ranks is the gradient of their documents together."""
    mean = mean_over_ranks(partial(tiny_method, method), partial(_samples, method, made), ranks)
    for name, expected in whole_gradients(method, sum(UNEVEN[ranks]), made).items():
        torch.testing.assert_close(mean[name], expected, rtol=1e-3, atol=1e-6, msg=name)


def _samples(method: Callable[..., Method], made: Documents, count: int) -> list[Sample]:
    layout = tiny_method(method).layout(TOKENIZER, RULES)
    return [sample(made(number), layout) for number in range(count)]


def mean_over_ranks(
    model: Callable[[], Method], samples: Callable[[int], list[Sample]], ranks: int
) -> dict[str, Tensor]:
    """The gradients that DDP takes: the mean over UNEVEN ranks.

    Args:
        model: Makes the same model on each rank.
        samples: Makes the first so many samples, which the ranks share in their order.
        ranks: 2 or 4.
    """
    found = run_ranks(ranks, _gradients_of_a_rank, model, samples)
    return {name: torch.stack([of_rank[name] for of_rank in found]).mean(0) for name in found[0]}


def _gradients_of_a_rank(
    rank: int, ranks: int, model: Callable[[], Method], samples: Callable[[int], list[Sample]]
) -> dict[str, Tensor]:
    as_launched(rank, ranks)
    mine = samples(sum(UNEVEN[ranks][: rank + 1]))[sum(UNEVEN[ranks][:rank]) :]
    bad = [bad_sample(f"bad-{i}", "test", IMAGE_SIZE) for i in range(4 - len(mine))]
    return assert_every_parameter_gets_a_gradient(model(), collate([*mine, *bad]))


def assert_every_parameter_gets_a_gradient(model: Method, rows: PackedBatch) -> dict[str, Tensor]:
    """That of the total loss, by name; losses and gradients are finite."""
    losses = model.loss(model(rows), rows)
    assert all(torch.isfinite(loss) for loss in losses.values())
    losses["total"].backward()
    found = gradients(model)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    return found


def assert_idle_work_changes_nothing(model: Method, rows: PackedBatch) -> None:
    """Training leaves out what only terms without a weight read: its gradients are those with all of it."""
    found = []
    for training in (False, True):
        model.train(training).zero_grad()
        model.loss(model(rows), rows)["total"].backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def assert_operations_are_what_torch_counts(model: Method) -> None:
    """Of a forward of five pairs, through a causal language model of two layers."""
    rows = batch([random_pair(index) for index in range(5)], model.layout(TOKENIZER, RULES))
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.eval()(rows)
    # torch counts whole score matrices, of which a causal kernel computes half
    above_diagonal = sum(n * (n - 1) // 2 for n in rows["lengths"]) * 4 * EMBED_DIM * 2
    pooler, counted = model.parts.get("pooler"), model.forward_flops(rows)
    # the query, once a batch: its projection, and the keys' matrix folded into it
    query = 2 * (WIDTH + WIDTH) * EMBED_DIM if pooler is not None else 0
    assert sum(counted.values()) + query + above_diagonal == counter.get_total_flops()
    assert all(counted.values())
