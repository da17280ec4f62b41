"""Held-out losses are those of the documents, whatever the ranks and workers that read them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from streaming.base.world import World

from lcl_composer.data.interleave import LayoutRules
from lcl_composer.data.loader import DocumentLoader
from lcl_composer.data.sampling import deal_held_out
from lcl_composer.data.stream import DocumentStream
from tests.data.conftest import MakeDataset
from tests.data.loaders import loader_of
from tests.distributed import run_ranks
from tests.models.tiny import IMAGE_SIZE, TOKENIZER, TOKENS_PER_IMAGE, tiny_model

COUNTS = (1, 3, 9)
GLOBAL_BATCH = 4


def held_out(folder: Path, ranks: int, **changes: Any) -> DocumentLoader:
    options: dict[str, Any] = {
        "local": str(folder),
        "train": False,
        "shuffle": False,
        "tokenizer": TOKENIZER,
        "rules": LayoutRules(tokens_per_image=TOKENS_PER_IMAGE, max_tokens=40),
        "image_size": IMAGE_SIZE,
        "batch_size": GLOBAL_BATCH // ranks,
    }
    return cast(DocumentLoader, loader_of(**{**options, **changes}).dataloader)


@torch.no_grad()
def losses(rank: int, ranks: int, folders: list[Path]) -> list[list[float]]:
    """Held-out losses of each set, as Composer's evaluation takes them."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank)
    )
    model = tiny_model().eval()
    found = []
    for folder in folders:
        metrics = model.get_metrics(is_train=False)
        for batch in held_out(folder, ranks):
            outputs = model.eval_forward(batch)
            for metric in metrics.values():
                model.update_metric(batch, outputs, metric)
        found.append([float(metric.compute()) for metric in metrics.values()])
    return found


@pytest.mark.slow
@pytest.mark.world_size(2)
def test_two_ranks_measure_what_one_measures(make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # so that it is put back
    folders = [make_dataset(count, name=f"of-{count}") for count in COUNTS]
    expected = losses(0, 1, folders)
    assert len({round(contrastive, 3) for contrastive, _ in expected}) == len(COUNTS)
    for found in run_ranks(2, losses, folders):
        for theirs, ours in zip(found, expected, strict=True):
            assert theirs == pytest.approx(ours, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("documents", [1, 3, 8, 63])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 3), (2, 1), (2, 2), (4, 3)])
def test_every_rank_has_its_part_of_the_same_batches(documents: int, ranks: int, workers: int):
    """Worked out by hand: batch b is documents 8b to 8b + 7, and no rank has a batch or a sample more."""
    order, blank, last = np.arange(documents), -7, -(-documents // 8) - 1
    parts = [
        [deal_held_out(order, 8, (rank, ranks), (worker, workers), blank) for worker in range(workers)]
        for rank in range(ranks)
    ]
    for number in range(last + 1):
        first = 8 // ranks * (number // workers)
        rows = [of_rank[number % workers][first : first + 8 // ranks] for of_rank in parts]
        assert len({len(row) for row in rows}) == 1
        ids = np.concatenate(rows)
        assert ids[ids != blank].tolist() == list(range(8 * number, min(8 * number + 8, documents)))
        assert (ids == blank).sum() < ranks if number == last else blank not in ids
    assert sum(len(part) for part in parts[0]) <= 8 // ranks * (last + 1)


@pytest.mark.parametrize("changes", [{}, {"shuffle": True}, {"num_canonical_nodes": 4}])
def test_places_without_a_document_stay_empty(make_dataset: MakeDataset, changes: dict[str, Any]):
    """Seven documents on two ranks and four canonical nodes, for both of which Streaming repeats some."""
    stream = cast(DocumentStream, held_out(make_dataset(7), 2, **changes).dataset)
    stream._ranks = 2
    ids = []
    for rank in (0, 1):
        stream._parallel_worker_world = World(1, 2, 1, rank)
        samples = [stream[number] for number in stream._get_work(0, 0).tolist()]
        assert len(samples) == 4
        assert not any(sample["problem"] for sample in samples)
        assert all(len(sample["tokens"]) for sample in samples if sample["id"])
        ids += [sample["id"] for sample in samples]
    assert sorted(ids) == ["", *(f"doc-{i:03}" for i in range(7))]
