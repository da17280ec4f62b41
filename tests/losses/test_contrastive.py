"""The contrastive losses over ranks equal the loss and gradients of the same global batch on one process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lcl_composer.losses import contrastive_loss, sigmoid_contrastive_loss
from tests.distributed import run_ranks

WIDTH = 24
COUNTS = [[16], [9, 7], [0, 5], [2, 14, 8, 8], [0, 16, 8, 8], [8, 8, 8, 8], [0, 0, 0, 0]]


def features(counts: list[int]) -> tuple[Tensor, Tensor]:
    """Global image and context features, of lengths that are not 1."""
    generator = torch.Generator().manual_seed(3)
    images, contexts = 3 * torch.randn(2, sum(counts), WIDTH, generator=generator, dtype=torch.float64)
    return images, 0.3 * images + contexts


def loss_and_gradients(kind: str, images: Tensor, contexts: Tensor) -> list[Tensor]:
    """This rank's share: the loss, then the gradients of images, contexts, scale (and bias)."""
    leaves = [images.clone().requires_grad_(), contexts.clone().requires_grad_()]
    leaves.append(torch.tensor(20.0, dtype=torch.float64, requires_grad=True))
    if kind == "sigmoid":
        leaves.append(torch.tensor(-3.0, dtype=torch.float64, requires_grad=True))
        loss = sigmoid_contrastive_loss(*leaves)
    else:
        loss = contrastive_loss(*leaves)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def rank_share(rank: int, world_size: int, kind: str, counts: list[int]) -> list[Tensor]:
    images, contexts = features(counts)
    mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    return loss_and_gradients(kind, images[mine], contexts[mine])


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("kind", ["info_nce", "sigmoid"])
def test_row_blocks_sum_to_the_global_batch(kind: str, counts: list[int]):
    expected = loss_and_gradients(kind, *features(counts))
    shares = run_ranks(len(counts), rank_share, kind, counts)
    features_of = [torch.cat([share[i] for share in shares]) for i in (1, 2)]
    replicated = [sum(share[i] for share in shares) for i in (0, *range(3, len(expected)))]
    found = [replicated[0], *features_of, *replicated[1:]]
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
