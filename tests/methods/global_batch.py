"""Microbatches and uneven ranks against one process with the whole batch, where nothing is contrasted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import bad_sample, collate, num_samples, split_batch
from lcl_composer.data.document import Document
from lcl_composer.methods.method import Method
from tests.algorithms.training import as_launched
from tests.distributed import run_ranks
from tests.models.tiny import (
    IMAGE_SIZE,
    RULES,
    TOKENIZER,
    batch,
    gradients,
    random_document,
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
    """The mean over ranks, which DDP takes, is the gradient of their documents together."""
    found = run_ranks(ranks, _gradients_of_a_rank, method, made)
    for name, expected in whole_gradients(method, sum(UNEVEN[ranks]), made).items():
        mean = torch.stack([of_rank[name] for of_rank in found]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-6, msg=name)


def _gradients_of_a_rank(
    rank: int, ranks: int, method: Callable[..., Method], made: Documents
) -> dict[str, Tensor]:
    as_launched(rank, ranks)
    model, first = tiny_method(method), sum(UNEVEN[ranks][:rank])
    layout = model.layout(TOKENIZER, RULES)
    mine = [sample(made(first + i), layout) for i in range(UNEVEN[ranks][rank])]
    rows = collate([*mine, *(bad_sample(f"bad-{i}", "test", IMAGE_SIZE) for i in range(4 - len(mine)))])
    model.loss(model(rows), rows)["total"].backward()
    return gradients(model)
