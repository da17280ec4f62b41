"""Batches dealt out by cost: the same batches, ranks of equal work, the same after a resume."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from lcl_composer.data.balance import DocumentCost, deal
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.loader import DocumentLoader
from lcl_composer.data.sizes import SIZES_FILE
from lcl_composer.data.stream import DocumentStream
from tests.algorithms.training import as_launched
from tests.data.conftest import MakeDataset, png
from tests.data.loaders import loader_of
from tests.distributed import run_ranks

COST = DocumentCost(byte=1.0, image=10.0, bytes_per_token=2.0, tokens_per_image=5, max_tokens=1000)


def test_a_cost_counts_text_and_images_up_to_the_context():
    cost = DocumentCost(byte=1.0, image=10.0, bytes_per_token=2.0, tokens_per_image=5, max_tokens=20)
    sizes = np.array([[10, 1], [0, 0], [20, 2], [40, 4]], np.uint32)
    assert cost.of(sizes).tolist() == [20, 0, 40, 40]  # the last is of 40 tokens, twice too long
    assert cost.of(sizes, max_images=1).tolist() == [20, 0, 30, 50 * 20 / 25]


def test_dealing_by_hand():
    samples = np.array([5, 1, 4, 8, 2, 7]).reshape(2, 1, 1, 3)  # a number is its cost
    dealt = deal(samples, lambda numbers: numbers.astype(float))
    # 8 | 7, then 5 to the second, 4 to the first, 2 to the first and 1 where there is room; in their order
    assert dealt.reshape(2, 3).tolist() == [[4, 8, 2], [5, 1, 7]]


@given(
    ranks=st.integers(1, 5),
    workers=st.integers(1, 3),
    batches=st.integers(1, 4),
    size=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_batches_stay_the_same_sets(ranks: int, workers: int, batches: int, size: int, seed: int):
    rng = np.random.default_rng(seed)
    samples = rng.permutation(ranks * workers * batches * size).reshape(ranks, workers, batches, size)
    samples[-1, -1, -1, -1] = -1  # the end of the data: a batch that is left as it is
    costs = rng.lognormal(size=samples.size)
    dealt = deal(samples, lambda numbers: costs[numbers])
    assert np.sort(dealt.transpose(1, 2, 0, 3).reshape(workers, batches, -1)).tolist() == (
        np.sort(samples.transpose(1, 2, 0, 3).reshape(workers, batches, -1)).tolist()
    )
    assert dealt[:, -1, -1].tolist() == samples[:, -1, -1].tolist()
    assert ranks > 1 or dealt.tolist() == samples.tolist()
    again = deal(samples[:, :, batches - 1 :], lambda numbers: costs[numbers])
    assert again.tolist() == dealt[:, :, batches - 1 :].tolist(), "as a resumed epoch deals"


def documents() -> list[Document]:
    """Of very different lengths; texts are numbers for NumberTokenizer."""
    lengths = np.random.default_rng(0).permutation(np.repeat([1, 2, 4, 14], 8))
    return [
        Document(f"doc-{i:03}", "test", (Image(png(i)), Text(" ".join(["7"] * n))))
        for i, n in enumerate(lengths.tolist())
    ]


def batches_of_a_rank(rank: int, ranks: int, folder: Path, workers: int) -> dict[str, list[list[str]]]:
    """Ids of its batches over two epochs: with sizes, taken up again after three, and without."""
    as_launched(rank, ranks)

    def loader(path: Path) -> DocumentLoader:
        options = {"local": str(path), "batch_size": 8 // ranks, "num_workers": workers, "cost": COST}
        return cast(DocumentLoader, loader_of(**options).dataloader)

    def take(made: DocumentLoader, count: int) -> list[list[str]]:
        batches = chain.from_iterable(iter(made) for _ in range(3))
        found = [[*batch["ids"], str(len(batch["tokens"]))] for batch in islice(batches, count)]
        made.close()
        return found

    found = {"dealt": take(loader(folder), 8)}
    resumed = loader(folder)
    stream = cast(DocumentStream, resumed.dataset)
    place = {"epoch": 0, "sample_in_epoch": 24, "num_canonical_nodes": 1, "shuffle_seed": 3}
    stream.load_state_dict({**place, "initial_physical_nodes": 1})
    dist.barrier()  # one piece of shared memory, which both have written
    found["resumed"] = take(resumed, 5)
    dist.barrier()
    if rank == 0:
        (folder / SIZES_FILE).unlink()
    found["as they come"] = take(loader(folder), 8)
    return found


@pytest.mark.world_size(2)
@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_get_equal_work_of_the_same_batches(make_dataset: MakeDataset, workers: int):
    folder = make_dataset(documents())
    found = run_ranks(2, batches_of_a_rank, folder, workers)
    assert all(len(of_rank["dealt"]) == 8 for of_rank in found)
    differences: dict[str, list[int]] = {}
    for name in ("dealt", "as they come"):
        pairs = list(zip(*(of_rank[name] for of_rank in found), strict=True))
        differences[name] = [abs(int(one[-1]) - int(other[-1])) for one, other in pairs]
        assert all(len(batch) == 4 + 1 for pair in pairs for batch in pair)
    sets = [
        [sorted(one[:-1] + other[:-1]) for one, other in zip(*(r[name] for r in found), strict=True)]
        for name in ("dealt", "as they come")
    ]
    assert sets[0] == sets[1]
    assert np.mean(differences["dealt"]) < np.mean(differences["as they come"]) / 2
    assert all(of_rank["resumed"] == of_rank["dealt"][3:] for of_rank in found)
