"""A real Trainer around the fake model, small enough for a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from composer import DataSpec, Trainer
from composer.core import Callback
from torch.utils.data import DataLoader

from lcl_composer.data.collate import num_samples, num_tokens, split_batch
from tests.evaluation.batches import make_batch
from tests.evaluation.fakes import FakeLCL


def data(documents: int, batches: int, prefix: str) -> DataSpec:
    loader = DataLoader([make_batch(documents, seed, prefix) for seed in range(batches)], batch_size=None)  # type: ignore[arg-type]
    return DataSpec(
        loader,
        split_batch=split_batch,
        get_num_samples_in_batch=num_samples,
        get_num_tokens_in_batch=num_tokens,
    )


def make_trainer(
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Any] = (),
    *,
    duration: str = "2ba",
    model: FakeLCL | None = None,
    held_out: bool = True,
    save_folder: Path | None = None,
    documents: int = 6,
    save_interval: str = "1ba",
) -> Trainer:
    torch.manual_seed(0)
    model = model or FakeLCL()
    return Trainer(
        model=model,
        train_dataloader=data(documents, 10, "train"),
        eval_dataloader=data(4, 3, "held") if held_out else None,
        eval_interval=0,
        optimizers=torch.optim.Adam(model.parameters(), lr=0.01),
        max_duration=duration,
        callbacks=list(callbacks),
        loggers=list(loggers),
        run_name="tiny",
        seed=1,
        device="cpu",
        device_train_microbatch_size=4,
        progress_bar=False,
        save_folder=str(save_folder) if save_folder else None,
        save_interval=save_interval,
        save_overwrite=True,
        autoresume=save_folder is not None,
    )
