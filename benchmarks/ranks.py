"""The contrastive loss over ranks: bytes a rank sends, and the error of its gradient.

    python benchmarks/ranks.py

Four gloo ranks on this machine. The gradient of each rank's encoder, averaged over ranks as DDP does, is held
against that of the same global batch on one process; cosine 1 means the same direction. Two rules: ours (row
blocks, global mean), and that of the released LCL code, written down here as a reference: both features are
gathered, each rank averages over its own images, and ranks are averaged. Bytes are those of ring collectives,
in units of B, the features of one side of the global batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lcl_composer.losses import contrastive_loss
from lcl_composer.losses.gather import gather_counts, gather_rows
from tests.distributed import run_ranks

WIDTH = 256
#: Anchored images of each rank.
CASES = [[8, 8, 8, 8], [2, 14, 8, 8], [0, 16, 8, 8], [512, 512, 512, 512]]

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(images: Tensor, contexts: Tensor, scale: Tensor) -> Tensor:
    """Shares that sum to the global loss, times the ranks that DDP divides by."""
    return contrastive_loss(images, contexts, scale) * dist.get_world_size()


def released(images: Tensor, contexts: Tensor, scale: Tensor) -> Tensor:
    """The rule of the released code: the mean over this rank's images, both directions."""
    images, contexts = F.normalize(images, dim=1), F.normalize(contexts, dim=1)
    counts = gather_counts(images.shape[0])
    all_images, all_contexts = gather_rows(images, counts), gather_rows(contexts, counts)
    labels = torch.arange(images.shape[0]) + sum(counts[: dist.get_rank()])
    there = F.cross_entropy(scale * images @ all_contexts.T, labels)
    return (there + F.cross_entropy(scale * contexts @ all_images.T, labels)) / 2


RULES: dict[str, Rule] = {"ours": ours, "released rule": released}


def loss_and_gradient(rule: Rule, counts: list[int], rank: int) -> tuple[Tensor, Tensor]:
    """The loss and a linear image encoder's gradient [E * E] on one rank's part of the global batch."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(sum(counts), WIDTH, generator=generator)
    contexts = 0.3 * pixels + torch.randn(sum(counts), WIDTH, generator=generator)
    weight = (torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5).requires_grad_()
    mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    part = contexts[mine].requires_grad_()
    loss = rule(pixels[mine] @ weight, part, torch.tensor(20.0))
    return loss.detach(), torch.autograd.grad(loss, (weight, part))[0].flatten()


@contextmanager
def counted() -> Iterator[list[float]]:
    """Collect the bytes that this rank sends in ring collectives."""
    sent, world = [], dist.get_world_size()
    gather, scatter, reduce = dist.all_gather_into_tensor, dist.reduce_scatter_tensor, dist.all_reduce

    def count(share: float, call: Callable, tensor: Tensor, *args: object, **kwargs: object) -> object:
        sent.append(share * tensor.numel() * tensor.element_size())
        return call(tensor, *args, **kwargs)

    ring = (world - 1) / world
    with (
        # The first argument is the whole of what is gathered, but the part of what is scattered.
        mock.patch.object(dist, "all_gather_into_tensor", lambda *a, **k: count(ring, gather, *a, **k)),
        mock.patch.object(dist, "reduce_scatter_tensor", lambda *a, **k: count(world - 1, scatter, *a, **k)),
        mock.patch.object(dist, "all_reduce", lambda *a, **k: count(2 * ring, reduce, *a, **k)),
    ):
        yield sent


def measure(rank: int, world_size: int) -> list[list[Tensor]]:
    """For each case and rule: loss and gradient averaged over ranks, and the bytes this rank sent."""
    results = []
    for counts in CASES:
        for rule in RULES.values():
            with counted() as sent:
                loss, gradient = loss_and_gradient(rule, counts, rank)
            for tensor in (loss, gradient):
                dist.all_reduce(tensor)
            results.append([loss / world_size, gradient / world_size, torch.tensor(sum(sent))])
    return results


def whole_batch(images: Tensor, contexts: Tensor, scale: Tensor) -> Tensor:
    """The loss of the global batch on one process, by its definition."""
    logits = scale * F.normalize(images, dim=1) @ F.normalize(contexts, dim=1).T
    labels = torch.arange(images.shape[0])
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def main() -> None:
    """Print the table."""
    results = iter(run_ranks(4, measure)[1])
    print("| images of each rank | rule | loss | gradient's relative error | cosine | bytes sent a rank, B |")
    print("|---|---|---|---|---|---|")
    for counts in CASES:
        expected_loss, expected = loss_and_gradient(whole_batch, [sum(counts)], 0)
        print(f"| {counts} | one process | {expected_loss.item():.4f} | | | |")
        side = 4 * sum(counts) * WIDTH
        for name in RULES:
            loss, found, sent = next(results)
            error = ((found - expected).norm() / expected.norm()).item()
            cosine = F.cosine_similarity(found, expected, dim=0).item()
            figures = f"{loss.item():.4f} | {error:.1e} | {cosine:.4f} | {sent.item() / side:.2f}"
            print(f"| {counts} | {name} | {figures} |")


if __name__ == "__main__":
    main()
