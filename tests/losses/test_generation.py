from __future__ import annotations

import torch
from torch import Tensor

from lcl_composer.losses import generation_loss


def batch(n: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(n, 8, generator=generator), torch.randn(30, 8, generator=generator)
    targets = torch.randint(0, 30, (n,), generator=generator)
    targets[::5] = -100
    return hidden.double(), weight.double(), targets


def test_shares_of_uneven_microbatches_sum_to_the_global_mean():
    hidden, weight, targets = batch()
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
    total = (targets != -100).sum()
    parts = [slice(0, 1), slice(1, 1), slice(1, 20), slice(20, 24)]
    shares = [generation_loss(hidden[part], weight, targets[part], total=total) for part in parts]
    torch.testing.assert_close(torch.stack(shares).sum(), expected)
    torch.testing.assert_close(generation_loss(hidden, weight, targets), expected)


def test_no_target_gives_zero_that_still_depends_on_the_weights():
    hidden, weight, targets = batch()
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    for n, total in ((0, torch.tensor(0)), (24, 0), (24, None)):
        loss = generation_loss(leaves[0][:n], leaves[1], torch.full_like(targets[:n], -100), total=total)
        assert loss == 0
        for gradient in torch.autograd.grad(loss, leaves):
            assert torch.equal(gradient, torch.zeros_like(gradient))


def test_float32_loss_from_bfloat16_activations():
    hidden, weight, targets = batch()
    assert generation_loss(hidden.bfloat16(), weight.bfloat16(), targets, total=24).dtype == torch.float32
