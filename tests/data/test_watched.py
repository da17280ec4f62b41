"""What a download thread raises reaches the one who iterates, and nobody waits for a dead thread."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from streaming.base.dataset import StreamingDataset

from lcl_composer.data.watched import WatchedDataset
from lcl_composer.errors import DataError
from tests.data.conftest import MakeDataset


class _Failing(WatchedDataset):
    """A data set whose shards can't be had, as both of its threads find out at the same time."""

    _key = "data.train"

    def __init__(self, remote: Path, local: Path, error: Exception) -> None:
        super().__init__(remote=str(remote), local=str(local), batch_size=1)
        self._error = error
        self.met = threading.Barrier(2, timeout=20)

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        self.met.wait()
        raise self._error


def _read_in_thread(dataset: WatchedDataset) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def read() -> None:
        try:
            list(dataset)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(timeout=20)
    return thread, raised


@pytest.mark.parametrize("error", [OSError("no such bucket"), DataError("data.train.remote: gone")])
def test_an_epoch_ends_when_both_threads_have_failed(
    make_dataset: MakeDataset, tmp_path: Path, error: Exception
):
    dataset = _Failing(make_dataset(8), tmp_path / "cache", error)
    thread, raised = _read_in_thread(dataset)
    assert not thread.is_alive()
    told = "data.train.remote: gone" if isinstance(error, DataError) else "data.train: no such bucket"
    assert [(type(e), str(e)) for e in raised] == [(DataError, told)]


def test_a_shard_that_could_not_be_had_is_left_for_another_try(
    make_dataset: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    remote = make_dataset(8)
    dataset = WatchedDataset(remote=str(remote), local=str(tmp_path / "cache"), batch_size=1)
    download: Any = dataset.streams[0].prepare_shard

    def fail(shard: Any) -> int:
        raise OSError("reset by peer")

    monkeypatch.setattr(dataset.streams[0], "prepare_shard", fail)
    with pytest.raises(OSError, match="reset by peer"):
        dataset.prepare_shard(0)
    monkeypatch.setattr(dataset.streams[0], "prepare_shard", download)
    dataset.prepare_shard(0)  # Streaming's own would wait for ever for the first try
    assert StreamingDataset.get_item(dataset, 0)["id"] == "doc-000"
