"""The loader under Composer's Trainer: what is trained on is the same with and without a resume."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer import ComposerModel, Trainer
from composer.loggers import InMemoryLogger
from streaming import StreamingDataLoader

from lcl_composer.callbacks.bad_samples import BadSamples
from lcl_composer.crash import cause
from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.loader import DocumentLoader
from tests.data.conftest import MakeDataset, example
from tests.data.loaders import loader_of


class Recorder(ComposerModel):
    """Notes the ids and pixels of each microbatch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[tuple[str, ...], int]] = []

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        self.seen.append((tuple(batch["ids"]), int(batch["pixel_values"].sum())))
        return self.weight * len(batch["tokens"])

    def loss(self, outputs: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        return outputs


def train(folder: Path, until: str, workers: int, **options: Any) -> tuple[Recorder, Trainer]:
    """22 documents by 3 are 7 batches an epoch, each of microbatches of 2 and 1."""
    spec = loader_of(local=str(folder), num_workers=workers, batch_size=3, max_bad_fraction=1.0)
    model = Recorder()
    trainer = Trainer(
        model=model,
        train_dataloader=spec,
        max_duration=until,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.0),
        device="cpu",
        device_train_microbatch_size=2,
        progress_bar=False,
        **options,
    )
    trainer.fit()
    assert isinstance(spec.dataloader, DocumentLoader)
    spec.dataloader.close()
    return model, trainer


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", ["1ep", "7ba", "10ba"])
def test_trainer_resumes_in_place(make_dataset: MakeDataset, tmp_path: Path, workers: int, stop: str):
    """Stops at an epoch's end, at its last batch before the end is noted, and in mid-epoch."""
    folder = make_dataset(22)
    whole, trainer = train(folder, "2ep", workers)
    assert int(trainer.state.timestamp.sample) == 42
    save: dict[str, Any] = {"save_folder": str(tmp_path / "run"), "run_name": "x", "autoresume": True}
    first, _ = train(folder, stop, workers, save_interval=stop, **save)
    second, trainer = train(folder, "2ep", workers, save_interval="2ep", **save)
    assert first.seen + second.seen == whole.seen
    assert int(trainer.state.timestamp.sample) == 42


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, OSError), (-9, RuntimeError)])
def test_a_worker_that_is_found_gone(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, kind: type
):
    """torch says then neither how it ended nor that shared memory is full."""
    loader: Any = loader_of(local=str(make_dataset(4))).dataloader

    def gone(self: Any) -> Any:
        workers = [SimpleNamespace(exitcode=code)]
        self._iterator = SimpleNamespace(_workers=workers, _shutdown_workers=lambda: None)
        raise RuntimeError("DataLoader worker (pid(s) 9) exited unexpectedly")

    monkeypatch.setattr(StreamingDataLoader, "__iter__", gone)
    with pytest.raises(kind) as caught:
        next(iter(loader))
    assert ("/dev/shm is full" in cause(caught.value, tmp_path)) is (code == errno.ENOSPC)


def test_bad_samples_are_consumed_and_logged(make_dataset: MakeDataset):
    broken = Document("broken", "test", (Text("1"), Image(b"no image"), Text("2")))
    folder = make_dataset([broken, *(example(i) for i in range(5))])
    memory = InMemoryLogger()
    _, trainer = train(folder, "2ep", 0, loggers=[memory], callbacks=[BadSamples()])
    assert int(trainer.state.timestamp.sample) == 12
    assert [int(value) for _, value in memory.data["data/bad_samples"]] == [1, 2, 2]
