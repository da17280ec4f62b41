"""A Trainer around the tiny LCL model on documents that go through our own layout; 1 or 2 ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from composer import Algorithm, DataSpec, State, Trainer
from composer.core import Callback, Evaluator
from composer.loggers import InMemoryLogger, Logger
from composer.utils import dist
from torch.utils.data import DataLoader, IterableDataset

from lcl_composer.callbacks.checkpoint_contents import CheckpointContents
from lcl_composer.checkpoint import only_safe_loads
from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.collate import collate, num_samples, num_tokens, split_batch
from lcl_composer.methods.lcl import LCL
from tests.models.tiny import document, random_document, sample, tiny_model

DOCUMENTS = 8  # in a global batch
#: Rank 1 of 2 begins with a microbatch without an image.
TEXTS = {4, 5}


def global_batch(index: int) -> list[Any]:
    """Samples of a global batch: some documents have many images, some none."""
    rows = [random_document(DOCUMENTS * index + i) for i in range(DOCUMENTS)]
    rows = [document("1 2 3", name=f"text-{i}") if i in TEXTS else row for i, row in enumerate(rows)]
    return [sample(row) for row in rows]


def batches(count: int, rank: int = 0, ranks: int = 1) -> list[PackedBatch]:
    """This rank's part of the first global batches."""
    size = DOCUMENTS // ranks
    return [collate(global_batch(i)[rank * size : (rank + 1) * size]) for i in range(count)]


class Batches(IterableDataset):
    """Ready-made batches; Composer wants a sampler of anything that is not iterable."""

    def __init__(self, made: list[PackedBatch]):
        self.made = made

    def __iter__(self) -> Iterator[PackedBatch]:
        return iter(self.made)

    def __len__(self) -> int:
        return len(self.made)


def data(count: int) -> DataSpec:
    """This rank's part of the first global batches."""
    rank, ranks = (dist.get_global_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return DataSpec(
        DataLoader(Batches(batches(count, rank, ranks)), batch_size=None),
        split_batch=split_batch,
        get_num_samples_in_batch=num_samples,
        get_num_tokens_in_batch=num_tokens,
    )


class Record(Callback):
    """Keep the gradients of each batch, and values of the model at chosen events."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []

    def after_train_batch(self, state: State, logger: Logger) -> None:
        named = {n.removeprefix("module."): p for n, p in state.model.named_parameters()}
        self.gradients.append({n: p.grad.clone() for n, p in named.items() if p.grad is not None})


def make_trainer(
    algorithms: Sequence[Algorithm] = (),
    callbacks: Sequence[Callback] = (),
    *,
    model: LCL | None = None,
    duration: str = "4ba",
    micro: int = 2,
    optimizer: str = "adam",
    folder: Path | None = None,
    load: str | None = None,
    evaluate: bool = False,
    batch_count: int = 4,
) -> Trainer:
    """Train the tiny model; checkpoints after each batch into ``folder``."""
    only_safe_loads()
    model = model or tiny_model()
    make = {"adam": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    groups = [
        {"params": matrices},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0},
    ]
    return Trainer(
        model=model,
        train_dataloader=data(batch_count),
        eval_dataloader=Evaluator(label="eval", dataloader=data(2), device_eval_microbatch_size=4)
        if evaluate
        else None,
        eval_interval="1ba" if evaluate else 1,
        optimizers=make(groups, lr=0.01, weight_decay=0.1),
        max_duration=duration,
        algorithms=list(algorithms),
        callbacks=[CheckpointContents(), *callbacks],
        loggers=[InMemoryLogger()],
        run_name="tiny",
        seed=1,
        device="cpu",
        device_train_microbatch_size=micro,
        progress_bar=False,
        save_folder=str(folder) if folder else None,
        save_filename="ba{batch}.pt",
        save_interval="1ba",
        save_overwrite=True,
        load_path=load,
    )


def as_launched(rank: int, ranks: int) -> None:
    """Set what Composer's launcher sets for a process; Composer asks for it beside torch.distributed."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ.update({name: str(value) for name, value in names.items()})


def logged(trainer: Trainer, metric: str) -> list[float]:
    """Values of a metric in the order in which they were logged."""
    memory = next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger))
    return [float(value) for _, value in memory.data.get(metric, [])]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copy of the bare model's weights."""
    return {n.removeprefix("module."): t.clone() for n, t in trainer.state.model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        difference = float((a[name].double() - b[name].double()).abs().max())
        assert difference <= tolerance, f"{name} differs by {difference}"
