"""The contrastive losses over ranks equal the loss and gradients of the same global batch on one process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lcl_composer.losses import contrastive_loss, sigmoid_contrastive_loss
from tests.distributed import run_ranks

WIDTH = 24
#: Anchored images of each rank.
COUNTS = {
    2: [[9, 7], [0, 5], [1, 0]],
    3: [[3, 0, 8]],
    4: [[2, 14, 8, 8], [0, 16, 8, 8], [8, 8, 8, 8], [0, 0, 0, 0]],
}
KINDS = ["info_nce", "sigmoid"]


def features(counts: list[int]) -> tuple[Tensor, Tensor]:
    """Image and context features of the global batch, of lengths that are not 1."""
    generator = torch.Generator().manual_seed(3)
    images, contexts = 3 * torch.randn(2, sum(counts), WIDTH, generator=generator, dtype=torch.float64)
    return images, 0.3 * images + contexts


def loss_and_gradients(kind: str, images: Tensor, contexts: Tensor) -> list[Tensor]:
    """This process' share: the loss, then the gradients of images, contexts, scale (and bias)."""
    leaves = [images.clone().requires_grad_(), contexts.clone().requires_grad_()]
    leaves.append(torch.tensor(20.0, dtype=torch.float64, requires_grad=True))
    if kind == "sigmoid":
        leaves.append(torch.tensor(-3.0, dtype=torch.float64, requires_grad=True))
        loss = sigmoid_contrastive_loss(*leaves)
    else:
        loss = contrastive_loss(*leaves)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def rank_shares(rank: int, world_size: int) -> list[list[Tensor]]:
    """The shares of one rank, for each of COUNTS and KINDS in turn."""
    shares = []
    for counts in COUNTS[world_size]:
        images, contexts = features(counts)
        mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        shares += [loss_and_gradients(kind, images[mine], contexts[mine]) for kind in KINDS]
    return shares


@pytest.mark.slow
@pytest.mark.parametrize("world_size", COUNTS)
def test_row_blocks_sum_to_the_global_batch(world_size: int):
    by_rank = run_ranks(world_size, rank_shares)
    cases = [(counts, kind) for counts in COUNTS[world_size] for kind in KINDS]
    for (counts, kind), shares in zip(cases, zip(*by_rank, strict=True), strict=True):
        expected = loss_and_gradients(kind, *features(counts))
        found = [
            torch.cat([share[i] for share in shares]) if i in (1, 2) else sum(share[i] for share in shares)
            for i in range(len(expected))
        ]
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_one_process_needs_no_process_group():
    images, contexts = features([16])
    normal = torch.nn.functional.normalize
    logits = 20.0 * normal(images, dim=1) @ normal(contexts, dim=1).T
    target = torch.arange(16)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(loss_and_gradients("info_nce", images, contexts)[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_no_image_gives_zero_that_still_depends_on_the_features(kind: str):
    loss, *gradients = loss_and_gradients(kind, *features([0]))
    assert loss == 0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_total_divides():
    images, contexts = features([16])
    scale = torch.tensor(20.0)
    whole = contrastive_loss(images, contexts, scale)
    for total in (64, torch.tensor(64)):
        torch.testing.assert_close(contrastive_loss(images, contexts, scale, total=total), whole / 4)


def test_features_of_unequal_shape():
    with pytest.raises(ValueError, match=r"\[3, 24\], \[2, 24\]"):
        contrastive_loss(torch.ones(3, 24), torch.ones(2, 24), torch.tensor(1.0))
