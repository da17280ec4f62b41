"""Who owns a run folder, and what a launch does with what it finds there (whole runs: test_resume.py)."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest
import torch

from lcl_composer.config import RunConfig
from lcl_composer.errors import DataError, LCLError
from lcl_composer.run_folder import RunFolder, Start
from tests import runs


def run(folder: Path, checkpoints: str = "") -> RunFolder:
    return RunFolder("tiny", folder / "runs/tiny", checkpoints or str(folder / "runs/tiny/checkpoints"))


def save(folder: Path, name: str, weight: float = 1.0, run_name: str = "tiny") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    state = {"model": {"w": torch.full((9,), weight)}, "run_name": run_name}
    torch.save({"state": state}, folder / name)
    return folder / name


def hold(folder: Path, held: multiprocessing.Event) -> None:  # type: ignore[valid-type]
    with run(folder).held():
        held.set()
        time.sleep(60)


def try_to_hold(folder: RunFolder) -> None:
    with folder.held():
        pass


def test_one_launch_holds_the_folder_until_it_dies(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=hold, args=(tmp_path, held))
    other.start()
    assert held.wait(10)
    with pytest.raises(LCLError, match=rf"runs/tiny is in use by another launch \(process {other.pid} on"):
        try_to_hold(run(tmp_path))
    second = RunFolder("two", tmp_path / "runs/two", str(tmp_path / "runs/tiny/checkpoints"))
    with pytest.raises(LCLError, match="checkpoints is in use"):  # another name, the same save_folder
        try_to_hold(second)
    other.kill()
    other.join()
    try_to_hold(run(tmp_path))


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    folder = run(tmp_path, str(tmp_path / "file"))
    with pytest.raises(LCLError, match=r"file cannot be written to \(File exists: .*\); mend its rights, or"):
        try_to_hold(folder)
    for place in ("/proc/nowhere", str(tmp_path / "file/inside")):
        with pytest.raises(LCLError, match=f"{place} cannot be written to"):
            try_to_hold(run(tmp_path, place))


def _sleep() -> None:
    time.sleep(60)


def test_workers_that_outlive_a_killed_launch_do_not_hold_it(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    with run(tmp_path).held():
        worker = context.Process(target=_sleep)
        worker.start()
    other = context.Process(target=try_to_hold, args=(run(tmp_path),))
    other.start()
    other.join()
    worker.kill()
    assert other.exitcode == 0


def test_the_newest_whole_and_finite_checkpoint_is_taken(tmp_path: Path):
    place = tmp_path / "runs/tiny/checkpoints"
    good = save(place, "ep0-ba9-rank0.pt")
    save(place, "ep1-ba20-rank0.pt", float("nan"))
    save(place, "ep1-ba100-rank0.pt").write_bytes(b"")
    start = run(tmp_path).find_start(autoresume=True)
    assert start.path == str(good)
    assert ["ba100" in start.notes[0], "ba20" in start.notes[1]] == [True, True]
    assert "not finite" in start.notes[1]


def test_a_checkpoint_that_does_not_fit_is_passed_over(tmp_path: Path):
    """For an earlier one that does; where none does the newest is given, for its reader to refuse."""
    place = tmp_path / "runs/tiny/checkpoints"
    fits, other = save(place, "ep0-ba9-rank0.pt"), save(place, "ep1-ba20-rank0.pt")
    save(place, "ep1-ba30-rank0.pt").write_bytes(b"")
    start = run(tmp_path).find_start(True, lambda path: "" if path == fits else "another architecture")
    assert start.path == str(fits)
    assert ["ba30" in start.notes[0], start.notes[1]] == [True, "another architecture; passed over"]
    start = run(tmp_path).find_start(True, lambda path: "another architecture")
    assert start.path == str(other)
    assert len(start.notes) == 1


def test_a_launch_that_was_killed_in_its_first_checkpoint_begins_again(tmp_path: Path):
    made = run(tmp_path)
    save(tmp_path / "runs/tiny/checkpoints", "ep0-ba9-rank0.pt").write_bytes(b"PK")
    start = made.find_start(autoresume=True)
    assert start.path is None
    assert "ba9-rank0.pt: cannot be read" in start.notes[0]
    made.note_checkpoint("ep0-ba9-rank0.pt", 9)  # it had been whole
    with pytest.raises(DataError, match="no other checkpoint of tiny can be read"):
        made.find_start(autoresume=True)


def test_metrics_before_the_first_checkpoint_are_kept(tmp_path: Path):
    assert run(tmp_path).find_start(autoresume=False) == Start()
    folder = tmp_path / "runs/tiny"
    folder.mkdir(parents=True)
    for number in (1, 2):
        (folder / "metrics.jsonl").write_text(f'{{"step": {number}}}\n')
        with pytest.raises(LCLError, match=r"autoresume is false, and .*metrics\.jsonl lies there"):
            run(tmp_path).find_start(autoresume=False)
        (note,) = run(tmp_path).find_start(autoresume=True).notes
        assert f"metrics.{number}.jsonl has its metrics" in note
        assert (folder / f"metrics.{number}.jsonl").read_text() == f'{{"step": {number}}}\n'
    (folder / "metrics.1.jsonl").unlink()  # tidied up
    (folder / "metrics.jsonl").write_text('{"step": 3}\n')
    assert "metrics.3.jsonl has its metrics" in run(tmp_path).find_start(autoresume=True).notes[0]
    assert (folder / "metrics.2.jsonl").read_text() == '{"step": 2}\n'


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", "[" * 100_000])
def test_damaged_notes_are_no_traceback(tmp_path: Path, text: str):
    folder = run(tmp_path)
    folder.folder.mkdir(parents=True)
    for name in ("newest_checkpoint.json", "finished.json"):
        (folder.folder / name).write_text(text)
    assert not folder.finished(6, {})
    folder.check_inputs({}, {"load_path": "1"})
    with pytest.raises(LCLError, match=r"was trained to batch \?, and its checkpoint \(unknown\) is not in"):
        folder.find_start(autoresume=True)


def test_another_runs_checkpoints_are_not_taken_over(tmp_path: Path):
    save(tmp_path / "shared", "ep0-ba9-rank0.pt", run_name="first")
    with pytest.raises(
        LCLError, match="holds the checkpoints of run 'first'; give 'tiny' a folder of its own"
    ):
        run(tmp_path, str(tmp_path / "shared")).find_start(autoresume=True)
    moved = save(tmp_path / "runs/tiny/checkpoints", "ep0-ba9-rank0.pt", run_name="first")  # a renamed folder
    assert run(tmp_path).find_start(autoresume=True).path == str(moved)


def test_the_mark_of_the_end_holds_for_its_batch_and_its_results(tmp_path: Path):
    made = run(tmp_path)
    assert not made.finished(6, {})
    (made.folder / "encoder").mkdir(parents=True)
    (made.folder / "encoder/config.json").write_text("{}")
    made.note_end(6, {"retrieval": {}}, {})
    assert made.finished(6, {"retrieval": {}})
    assert not made.finished(7, {"retrieval": {}})
    assert not made.finished(6, {})  # something else is to be measured
    (made.folder / "encoder/config.json").unlink()
    assert not made.finished(6, {"retrieval": {}})


def test_what_a_finished_run_read_must_lie_there_yet(tmp_path: Path):
    made = run(tmp_path)
    made.check_inputs({}, {"data.eval.local": "1"})  # not finished
    made.note_end(6, {"probe": {}}, {"data.eval.local": "1", "evaluation.probe.val": "2", "load_path": "3"})
    there = {"data.eval.local": "1", "evaluation.probe.val": "2", "tokenizer.path": "4"}
    made.check_inputs({"probe": {}}, there)  # a load_path is gone, a tokenizer was not noted
    with pytest.raises(
        DataError, match=r"runs/tiny is finished, and what data\.eval\.local names has changed"
    ):
        made.check_inputs({}, there | {"data.eval.local": "5"})
    changed = there | {"evaluation.probe.val": "5"}
    with pytest.raises(DataError, match=r"what evaluation\.probe\.val names"):
        made.check_inputs({"probe": {}}, changed)
    made.check_inputs({"probe": {"val": "elsewhere"}}, changed)  # it measures anew


def test_save_folder_takes_the_runs_name():
    settings = runs.settings(Path("data"), save_folder="/scratch/{run_name}/x")
    assert RunConfig(**settings).save_folder == "/scratch/tiny/x"
    with pytest.raises(ValueError, match=r"takes \{run_name\} and no other braces, got 'a/\{rank\}'"):
        RunConfig(**runs.settings(Path("data"), save_folder="a/{rank}"))
