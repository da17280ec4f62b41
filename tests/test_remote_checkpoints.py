"""Checkpoints in an object store: a folder of this machine stands for it."""

from __future__ import annotations

import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.callbacks import checkpoint_saver
from composer.utils import ObjectStore
from composer.utils.file_helpers import BACKEND_TO_OBJECT_STORE_FACTORY
from composer.utils.object_store.object_store import ObjectStoreTransientError
from composer.utils.remote_uploader import RemoteFilesExistingCheckStatus

from lcl_composer.checkpoint import misfit
from lcl_composer.errors import DataError, LCLError
from lcl_composer.remote_checkpoints import RemoteCheckpoints
from lcl_composer.run_folder import RunFolder, Start
from tests import runs
from tests.test_run_folder import save
from tests.test_train import _clean, data, fit

__all__ = ["_clean", "data"]


class Folder(ObjectStore):
    """Objects are files."""

    def __init__(self, root: Path, faults: list[Exception]):
        self.root, self.faults = root, faults

    def _fail(self) -> None:
        if self.faults:
            raise self.faults.pop()

    def list_objects(self, prefix: str | None) -> list[str]:
        self._fail()
        names = [str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()]
        return [name for name in names if name.startswith(prefix or "")]

    def download_object(self, object_name: str, filename: Any, overwrite: bool = False, callback: Any = None):
        self._fail()
        shutil.copyfile(self.root / object_name, filename)


@pytest.fixture
def faults() -> list[Exception]:
    """What the store raises at its next calls, the last first."""
    return []


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: list[Exception]) -> Path:
    """The folder of the checkpoints in the store."""
    (tmp_path / "bucket/tiny").mkdir(parents=True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    store = lambda bucket, path: Folder(tmp_path / bucket, faults)  # noqa: E731
    monkeypatch.setitem(BACKEND_TO_OBJECT_STORE_FACTORY, "s3", store)
    return tmp_path / "bucket/tiny"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder("tiny", tmp_path / "runs/tiny", "s3://bucket/tiny")


def test_the_newest_of_the_folder_is_fetched(bucket: Path, run: RunFolder) -> None:
    for name in ("ep0-ba9-rank0.pt", "ep1-ba10-rank0.pt", "ep1-ba12-rank1.pt", "other/ep1-ba20-rank0.pt"):
        save((bucket / name).parent, Path(name).name)
    save(bucket.with_name("tiny2"), "ep9-ba99-rank0.pt")
    (bucket / "latest-rank0.pt.symlink").write_text("tiny/ep1-ba10-rank0.pt")
    start = run.find_start(True)
    assert (start.path, start.notes) == (str(run.folder / "fetched/ep1-ba10-rank0.pt"), [])
    assert start.begun is not None
    assert Path(start.path or "").read_bytes() == (bucket / "ep1-ba10-rank0.pt").read_bytes()
    run.store.forget()
    assert not (run.folder / "fetched").exists()


@pytest.mark.parametrize("damage", [b"", b"cut"])
def test_one_that_cannot_be_read_is_passed_over(bucket: Path, run: RunFolder, damage: bytes) -> None:
    save(bucket, "ep0-ba2-rank0.pt")
    content = save(bucket, "ep0-ba4-rank0.pt").read_bytes()
    (bucket / "ep0-ba4-rank0.pt").write_bytes(damage and content[: len(content) // 2])
    start = run.find_start(True)
    assert start.path == str(run.folder / "fetched/ep0-ba2-rank0.pt")
    (note,) = start.notes
    assert note.startswith("checkpoint s3://bucket/tiny/ep0-ba4-rank0.pt: cannot be read")
    assert note.endswith("passed over")


def test_one_of_another_architecture_is_passed_over(bucket: Path, run: RunFolder) -> None:
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.zeros(9))
    save(bucket, "ep0-ba2-rank0.pt")
    torch.save({"state": {"model": {"w": torch.zeros(4)}}}, bucket / "ep0-ba4-rank0.pt")
    start = run.find_start(True, lambda path: misfit(path, model))
    assert Path(start.path or "").name == "ep0-ba2-rank0.pt"
    assert "tiny/ep0-ba4-rank0.pt: another architecture, 1 tensors differ" in start.notes[0]


def test_nothing_there_begins_and_nothing_readable_does_not(bucket: Path, run: RunFolder) -> None:
    assert run.find_start(True) == Start()
    (bucket / "ep0-ba4-rank0.pt").write_bytes(b"cut")
    run.note_checkpoint("ep0-ba4-rank0.pt", 4)
    with pytest.raises(DataError, match="no other checkpoint of tiny can be read"):
        run.find_start(True)
    (bucket / "ep0-ba4-rank0.pt").unlink()
    with pytest.raises(LCLError, match=r"was trained to batch 4, and its checkpoint .* is not in"):
        run.find_start(True)


def test_what_lies_there_is_not_overwritten_or_taken_over(bucket: Path, run: RunFolder) -> None:
    save(bucket, "ep0-ba4-rank0.pt")
    with pytest.raises(LCLError, match=r"autoresume is false, and s3://bucket/tiny/ep0-ba4-rank0\.pt lies"):
        run.find_start(False)
    save(bucket, "ep0-ba4-rank0.pt", run_name="another")
    with pytest.raises(LCLError, match="s3://bucket/tiny: holds the checkpoints of run 'another'"):
        run.find_start(True)


def test_a_store_that_does_not_answer_is_no_empty_one(
    bucket: Path, run: RunFolder, faults: list[Exception]
) -> None:
    save(bucket, "ep0-ba4-rank0.pt")
    faults += [ObjectStoreTransientError("slow down")] * 3
    assert run.find_start(True).path
    faults += [PermissionError("denied\nby the store")]
    with pytest.raises(DataError, match=r"s3://bucket/tiny: cannot be listed \(PermissionError: denied by"):
        run.find_start(True)
    faults[:] = [ConnectionError("gone"), *[ObjectStoreTransientError("slow down")] * 4]
    with pytest.raises(DataError, match="cannot be listed"):
        run.find_start(True)


def test_a_kind_of_store_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be reached"):
        RemoteCheckpoints("ftp://host/x", tmp_path).names()


def done(value: Any = None) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class Uploader:
    """Stands for Composer's, which starts four processes; copies into the folder of the bucket at once."""

    def __init__(self, remote_folder: str, num_concurrent_uploads: int):
        self.bucket = Path("bucket")

    def upload_file_async(self, remote_file_name: str, file_path: Any, overwrite: bool) -> Future[Any]:
        (self.bucket / remote_file_name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file_path, self.bucket / remote_file_name)
        return done()

    def check_remote_files_exist_async(self, **_: Any) -> Future[Any]:
        return done(RemoteFilesExistingCheckStatus.EXIST)

    def init(self) -> None: ...
    def check_workers(self) -> None: ...
    def wait(self) -> None: ...
    def wait_and_close(self) -> None: ...


def test_a_run_goes_on_from_the_newest_whole_one(
    tmp_path: Path, bucket: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(checkpoint_saver, "RemoteUploader", Uploader)
    values = runs.settings(data, save_folder="s3://bucket/{run_name}", save_interval="2ba")
    fit(values, crash_at=5)
    newest = bucket / "ep0-ba4-rank0.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    again = fit(values, crash_at=5)
    assert list(again.ids) == [2, 3, 4]
    assert not Path("runs/tiny/fetched").exists()
    assert list(fit(values, crash_at=6).ids) == [4, 5], "the damaged one was written anew"
    assert list(runs.read_metrics(tmp_path)) == list(range(1, 7))
