"""Training gradients over ranks and uneven microbatches, under DDP and FSDP2, equal those of one process."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lcl_composer.losses import contrastive_loss, generation_loss
from tests.distributed import run_ranks

WIDTH, VOCAB = 12, 30
COUNTS = {1: [[16]], 2: [[9, 7]], 4: [[2, 14, 8, 8], [0, 16, 8, 8], [8, 8, 8, 8]]}


class Toy(nn.Module):
    """Two towers and a vocabulary; the forward returns this rank's share of both losses."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.context = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.words = nn.Linear(WIDTH, VOCAB, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor([2.0]))

    def forward(self, images: Tensor, contexts: Tensor, targets: Tensor, totals: tuple[int, int]) -> Tensor:
        outputs = self.context(contexts)
        scale = self.logit_scale[0].exp().clamp(max=100.0)
        contrastive = contrastive_loss(self.image(images), outputs, scale, total=totals[0])
        return 0.1 * contrastive + generation_loss(outputs, self.words.weight, targets, total=totals[1])


def toy() -> Toy:
    torch.manual_seed(5)
    return Toy().double()


def global_batch(counts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(counts))
    images, contexts = torch.randn(2, sum(counts), WIDTH, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, VOCAB, (sum(counts),), generator=generator)
    targets[::3] = -100
    return images, contexts, targets


def microbatches(counts: list[int], rank: int) -> list[Tensor]:
    """Indices into the global batch of a rank's two microbatches, a quarter and the rest."""
    mine = torch.arange(sum(counts[:rank]), sum(counts[: rank + 1]))
    cut = len(mine) // 4
    return [mine[:cut], mine[cut:]]


def totals(targets: Tensor) -> tuple[int, int]:
    return len(targets), int((targets != -100).sum())


def one_process(counts: list[int]) -> dict[str, Tensor]:
    """The gradients: each microbatch is one set of negatives over all ranks."""
    model, batch = toy(), global_batch(counts)
    for parts in zip(*(microbatches(counts, rank) for rank in range(len(counts))), strict=True):
        index = torch.cat(parts)
        model(*(tensor[index] for tensor in batch), totals(batch[2])).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}  # type: ignore[misc]


def on_ranks(rank: int, world_size: int) -> list[dict[str, Tensor]]:
    """The gradients after two microbatches, for each of WRAPPERS and COUNTS."""
    results = []
    for wrapper, counts in cases(world_size):
        model, batch = wrap(toy(), wrapper, world_size), global_batch(counts)
        for index in microbatches(counts, rank):
            # Both wrappers average over ranks: times world_size, the average of shares is their sum.
            (world_size * model(*(tensor[index] for tensor in batch), totals(batch[2]))).backward()
        named = (model.module if wrapper == "ddp" else model).named_parameters()
        results.append({name: gradient(parameter) for name, parameter in named})
    return results


def cases(world_size: int) -> list[tuple[str, list[int]]]:
    return [(wrapper, counts) for wrapper in ("ddp", "fsdp2") for counts in COUNTS[world_size]]


def wrap(model: Toy, wrapper: str, world_size: int) -> nn.Module:
    if wrapper == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (world_size,))
    for child in (model.image, model.context):
        fully_shard(child, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def gradient(parameter: nn.Parameter) -> Tensor:
    found = parameter.grad
    assert found is not None
    # In float64 FSDP2 divides by itself; in float32 it asks for an average, and gloo would sum.
    return found.full_tensor() if isinstance(found, DTensor) else found


@pytest.mark.slow
@pytest.mark.parametrize("world_size", COUNTS)
def test_gradients_equal_those_of_one_process(world_size: int):
    for result in run_ranks(world_size, on_ranks):
        for (wrapper, counts), found in zip(cases(world_size), result, strict=True):
            for name, expected in one_process(counts).items():
                error = (found[name] - expected).norm() / expected.norm()
                assert error < 1e-9, (wrapper, counts, name, error)


class TiedToy(nn.Module):
    """Word embedding and output embedding are one; the loss is computed outside, as Composer does."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.body(self.words(tokens))


def tied_gradient(model: TiedToy, tokens: Tensor, targets: Tensor, factor: int, total: int) -> Tensor:
    (factor * generation_loss(model(tokens), model.words.weight, targets, total=total)).backward()
    return gradient(model.words.weight)


def tied_on_ranks(rank: int, world_size: int) -> Tensor:
    """The relative error of a tied embedding's gradient under FSDP2; a sharded one is refused."""
    torch.manual_seed(7)
    model, whole = TiedToy().double(), TiedToy().double()
    whole.load_state_dict(model.state_dict())
    tokens, targets = torch.randint(0, VOCAB, (2, world_size, 6))
    mesh = init_device_mesh("cpu", (world_size,))
    fully_shard(model.body, mesh=mesh)
    fully_shard(model, mesh=mesh)
    with pytest.raises(TypeError, match="sharded"):
        generation_loss(torch.zeros(6, WIDTH).double(), model.words.weight, targets[rank])
    found = tied_gradient(model, tokens[rank], targets[rank], world_size, targets.numel())
    expected = tied_gradient(whole, tokens.flatten(), targets.flatten(), 1, targets.numel())
    return (found - expected).norm() / expected.norm()


@pytest.mark.slow
def test_a_tied_output_embedding_under_fsdp2():
    assert max(run_ranks(2, tied_on_ranks)) < 1e-9


def loss_and_gradients(call: nn.Module | object, model: Toy) -> list[Tensor]:
    batch = global_batch([16])
    loss = call(*batch, totals(batch[2]))  # type: ignore[operator]
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def test_under_torch_compile_and_checkpointing():
    model = toy()
    expected = loss_and_gradients(model, model)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    for found in (
        loss_and_gradients(compiled, compiled),
        loss_and_gradients(lambda *args: checkpoint(model, *args, use_reentrant=False), model),
    ):
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want)
