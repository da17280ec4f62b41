"""Parts through any executor of concurrent.futures, and tasks as other machines run them."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lcl_composer.convert.engine import convert
from lcl_composer.convert.img2dataset import Img2Dataset
from lcl_composer.convert.machines import Home
from lcl_composer.convert.pools import Pool, RemoteTask, run_parts
from lcl_composer.convert.progress import Progress
from lcl_composer.convert.source import Part
from lcl_composer.convert.work import WorkFolder
from lcl_composer.convert.worker import Job
from lcl_composer.errors import DataError
from tests.convert.samples import content
from tests.convert.tars import write_folder


class Begun:
    """A conversion that is planned."""

    def __init__(self, folder: Path, tars: int = 3) -> None:
        source = Img2Dataset(write_folder(folder / "laion", tars, 4))
        self.out = folder / "out"
        self.job = Job(source, folder / "out.partial", None, 0.0, 1 << 26)
        self.folder = WorkFolder(self.job.root)
        with self.folder.locked():
            self.count = self.folder.begin({}, source)
        self.token = self.job.root / ".convert/tmp/run-1"
        self.token.mkdir()
        self.task = RemoteTask(self.job, Home.here(self.job, self.token))

    def parts(self) -> list[tuple[int, Part]]:
        return list(self.folder.parts(self.folder.finished(self.count)))


@pytest.fixture
def begun(tmp_path) -> Begun:
    return Begun(tmp_path)


def test_any_executor_will_do(begun):
    with ThreadPoolExecutor(1) as executor, Progress("x", 3, 0, False) as bar:
        run_parts(Pool(executor, begun.task, lambda: 1), begun.parts(), bar)
        assert bar._documents == 12
    assert begun.folder.finished(3) == b"\1\1\1"
    assert begun.parts() == []


def test_no_more_is_handed_out_than_twice_the_processes(begun):
    handed_out, waiting = [], []

    class Watched(ThreadPoolExecutor):
        def submit(self, fn, /, *args, **kwargs):
            future = super().submit(fn, *args, **kwargs)
            handed_out.append(future)
            waiting.append(sum(not f.done() for f in handed_out))
            return future

    parts = [(i, Part(f"{i}", ())) for i in range(40)]
    with Watched(1) as executor, Progress("x", 40, 0, False) as bar:
        run_parts(Pool(executor, lambda index, part: 1, lambda: 1), parts, bar)
    assert len(waiting) == 40
    assert max(waiting) <= 2


def test_a_part_of_which_another_process_is_done_changes_nothing(begun, tmp_path):
    for index, part in begun.parts():
        begun.task(index, part)
    before = content(begun.job.root)
    place = begun.job.root / "00001"
    inode = place.stat().st_ino
    for path in begun.folder.state.glob("parts/00001.*"):
        path.unlink()  # as a process that died before the record leaves it
    begun.task(*begun.parts()[0])
    assert content(begun.job.root) == before
    assert place.stat().st_ino == inode, "a folder that is in its place was taken away, if only for a moment"


def test_shards_that_a_machine_lost_power_over_are_replaced(begun):
    for index, part in begun.parts():
        begun.task(index, part)
    before = content(begun.job.root)
    next((begun.job.root / "00001").iterdir()).write_bytes(b"")
    begun.folder.record(1).unlink()
    begun.task(*begun.parts()[0])
    assert content(begun.job.root) == before


def test_a_part_that_ends_after_all_is_done_leaves_nothing(begun, tmp_path):
    parts = begun.parts()
    begun.job.root.rename(tmp_path / "finished")
    for index, part in parts:
        with pytest.raises((DataError, OSError)):
            begun.task(index, part)
    assert not begun.job.root.exists()


def test_a_part_whose_scratch_folder_a_restart_took_away_publishes_nothing(begun, monkeypatch):
    original = Img2Dataset.samples

    def samples(self, name, record, report):
        if name == "00000/000001":
            with begun.folder.locked():  # a restart
                begun.token.mkdir()
        return original(self, name, record, report)

    monkeypatch.setattr(Img2Dataset, "samples", samples)
    with pytest.raises(OSError, match="No such file"):
        begun.task(*begun.parts()[0])
    assert not list((begun.folder.state / "parts").iterdir())
    assert not list(begun.job.root.glob("0*"))


def test_a_conversion_that_was_given_up_ends_its_parts(begun, monkeypatch):
    monkeypatch.setattr("lcl_composer.convert.pools._LOOK", -1.0)
    (index, part), *_ = begun.parts()
    original = begun.folder.state

    def samples(self, name, record, report):
        if begun.token.exists():
            begun.token.rmdir()
        return iter(())

    monkeypatch.setattr(Img2Dataset, "samples", samples)
    with pytest.raises(DataError, match="was given up"):
        begun.task(index, part)
    assert not list((original / "parts").iterdir())


@pytest.mark.parametrize("change", ["touched", "gone"])
def test_a_source_that_is_not_the_one_planned_is_refused(begun, change):
    parts = begun.parts()
    begun.task(*parts[0])
    tar = begun.job.source.source / "00001.tar"
    if change == "gone":
        tar.unlink()
    else:
        tar.write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"'00001.tar' on \S+ is not the file that was planned \(20,480 bytes"
    ):
        begun.task(*parts[1])


def test_errors_name_the_machine(begun, monkeypatch):
    part = begun.parts()[0]

    def fail(error: Exception) -> None:
        def convert_part(*arguments) -> None:
            raise error

        monkeypatch.setattr("lcl_composer.convert.pools.convert_part", convert_part)

    fail(OSError(errno.ENOSPC, "No space left on device", "/out/x"))
    with pytest.raises(OSError, match=r"No space left on device on \S+: '/out/x'"):
        begun.task(*part)
    fail(MemoryError())
    with pytest.raises(DataError, match=r"^00000.tar: cannot be converted on \S+ \(MemoryError\)"):
        begun.task(*part)


def test_a_source_that_changes_at_work_is_found_on_one_machine(tmp_path, monkeypatch):
    source = Img2Dataset(write_folder(tmp_path / "laion", 2, 4))
    original = WorkFolder.parts

    def parts(self, finished):
        yield from original(self, finished)

    def change(self, finished):
        (source.source / "00001.tar").write_bytes(b"x")
        return parts(self, finished)

    monkeypatch.setattr(WorkFolder, "parts", change)
    with pytest.raises(DataError, match=r"'00001.tar' on .* is not the file that was planned"):
        convert(source, str(tmp_path / "out"), workers=1, progress=False)
