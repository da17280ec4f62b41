"""A step after a resume adds up gradients as that of a run that goes on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lcl_composer.ddp import SameBuckets
from tests.distributed import run_ranks

pytestmark = pytest.mark.world_size(3)

WRAPPERS = (SameBuckets, DistributedDataParallel)


class Network(nn.Module):
    """Two branches of more than a bucket, whose gradients do not come in the order of their parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Sequential(nn.Linear(64, 700), nn.Tanh(), nn.Linear(700, 700), nn.Tanh())
        self.wide = nn.Linear(64, 700)
        self.head = nn.Linear(700, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.deep(rows) + self.wide(rows).tanh()).square().mean()


def trained(wrapper: type, state: dict[str, Tensor] | None, rank: int, steps: range) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = Network()
    if state is not None:
        network.load_state_dict(state)
    model = wrapper(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in steps:
        optimizer.zero_grad()
        model(torch.randn(16, 64, generator=torch.Generator().manual_seed(100 * step + rank))).backward()
        optimizer.step()
    return {name: value.clone() for name, value in network.state_dict().items()}


def on_a_rank(rank: int, size: int) -> list[dict[str, Tensor]]:
    """For each wrapper the weights of a run that goes on, and of one that is launched twice."""
    found = []
    for wrapper in WRAPPERS:
        begun = trained(wrapper, None, rank, range(2))
        found += [trained(wrapper, None, rank, range(4)), trained(wrapper, begun, rank, range(2, 4))]
    return found


def test_a_run_that_is_launched_again_ends_with_the_same_bits() -> None:
    whole, resumed, plain, plain_resumed = run_ranks(3, on_a_rank)[0]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert all(torch.allclose(whole[name], plain[name], atol=1e-5) for name in whole)
    assert not all(torch.equal(plain[name], plain_resumed[name]) for name in plain), "torch does it by itself"
