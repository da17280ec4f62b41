"""InfoNCE over images of several features against a plain version, over ranks too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lcl_composer.losses import contrastive_loss, several_contrastive_loss
from tests.distributed import run_ranks

#: Rows of each rank.
UNEVEN = {2: [5, 2], 4: [0, 4, 1, 2]}


def features(count: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 8, generator=generator, dtype=torch.float64)
    contexts = torch.randn(count, 8, generator=generator, dtype=torch.float64)
    return images, contexts, torch.tensor(4.0, dtype=torch.float64)


def plain(images: Tensor, contexts: Tensor, scale: Tensor) -> Tensor:
    rows = []
    for image in images:
        row = [
            max((F.cosine_similarity(q, c, dim=0) for q in image), key=lambda x: x.item()) for c in contexts
        ]
        rows.append(torch.stack(row))
    logits, labels = scale * torch.stack(rows), torch.arange(len(images))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def with_gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def test_value_and_gradients_are_the_plain_ones() -> None:
    leaves = [x.requires_grad_() for x in features()]
    found = with_gradients(several_contrastive_loss(*leaves), leaves)
    for one, other in zip(found, with_gradients(plain(*leaves), leaves), strict=True):
        torch.testing.assert_close(one, other.to(one.dtype), rtol=1e-5, atol=1e-7)


def test_one_feature_an_image_is_info_nce() -> None:
    images, contexts, scale = features()
    one = several_contrastive_loss(images[:, :1], contexts, scale)
    torch.testing.assert_close(one, contrastive_loss(images[:, 0], contexts, scale), rtol=1e-6, atol=0)


def of_a_rank(rank: int, ranks: int) -> list[Tensor]:
    first = sum(UNEVEN[ranks][:rank])
    images, contexts, scale = features()
    rows = slice(first, first + UNEVEN[ranks][rank])
    leaves = [x.requires_grad_() for x in (images[rows].clone(), contexts[rows].clone(), scale)]
    return with_gradients(several_contrastive_loss(*leaves), leaves)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", UNEVEN)
def test_shares_of_uneven_ranks_add_up(ranks: int) -> None:
    leaves = [x.requires_grad_() for x in features()]
    loss, images, contexts, scale = with_gradients(plain(*leaves), leaves)
    found = list(zip(*run_ranks(ranks, of_a_rank), strict=True))
    got = [torch.stack(found[0]).sum(), torch.cat(found[1]), torch.cat(found[2]), torch.stack(found[3]).sum()]
    for one, other in zip(got, (loss, images, contexts, scale), strict=True):
        torch.testing.assert_close(one, other.to(one.dtype), rtol=1e-5, atol=1e-7)


def test_nothing_gives_nothing() -> None:
    images = torch.zeros(0, 3, 8, requires_grad=True)
    loss = several_contrastive_loss(images, torch.zeros(0, 8), torch.tensor(1.0), total=0)
    loss.backward()
    assert loss == 0
    assert images.grad is not None


def test_rows_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[2, 3, 8\], \[3, 8\]"):
        several_contrastive_loss(torch.zeros(2, 3, 8), torch.zeros(3, 8), torch.tensor(1.0))
