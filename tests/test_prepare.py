"""What a run lacks is made once, however many runs want it at the same time."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lcl_composer import prepare as module
from lcl_composer.config.compose import compose
from lcl_composer.errors import DataError
from lcl_composer.prepare import prepare
from tests.runs import settings, write_yaml


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A run whose documents, tokenizer and probe are to be made."""
    data = tmp_path / "data"
    generate = {"name": "shapes", "documents": 40, "split": "train"}
    probe = {"train": str(data / "probe/train"), "val": str(data / "probe/val")}
    values = settings(data, evaluation={"probe": probe})
    values["data"]["train"]["generate"] = generate
    return compose(write_yaml(tmp_path, values)).run


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).parts[0] for p in folder.rglob("*") if p.is_file()}


def test_runs_that_start_together_make_each_thing_once(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = []

    def slowly(name: str) -> Any:
        original, busy = getattr(module, name), threading.Lock()

        def make(*arguments: Any) -> None:
            assert busy.acquire(blocking=False), f"two at once in {name}"
            time.sleep(0.2)
            original(*arguments)
            made.append(name)
            busy.release()

        return make

    for name in ("generate_documents", "train_bpe"):
        monkeypatch.setattr(module, name, slowly(name))
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(prepare, run) for _ in range(2)]:
            future.result()
    assert sorted(made) == ["generate_documents", "train_bpe"]
    left = files(tmp_path / "data")
    assert {"train", "tokenizer.json", "probe"} <= left
    assert not [name for name in left if name.endswith(".partial")]
    assert len(list((tmp_path / "data/probe/val").iterdir())) == 48


def test_what_is_there_is_left_alone(run: Any, tmp_path: Path):
    prepare(run)
    paths = [tmp_path / "data" / name for name in ("tokenizer.json", "probe", "train/index.json")]
    before = [path.stat().st_mtime_ns for path in paths]
    prepare(run)
    assert [path.stat().st_mtime_ns for path in paths] == before


def with_documents(run: Any, count: int, **changes: Any) -> Any:
    """The run with another number of documents."""
    generate = run.data.train.generate.model_copy(update={"documents": count, **changes})
    train = run.data.train.model_copy(update={"generate": generate})
    return run.model_copy(update={"data": run.data.model_copy(update={"train": train})})


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ends the run: lets go of what its process would hold until it ends."""
    monkeypatch.setattr(module, "_in_use", held := [])

    def end() -> None:
        while held:
            held.pop().close()

    return end


def test_other_settings_make_documents_and_tokenizer_anew(
    run: Any, tmp_path: Path, ends: Any, capsys: pytest.CaptureFixture[str]
):
    """So that the tokenizer is that of the documents, and the probe, which is the same, is kept."""
    whole = with_documents(run, 60)
    prepare(whole)
    data = tmp_path / "data"
    tokenizer = (data / "tokenizer.json").read_bytes()
    pictures = (data / "probe").stat().st_mtime_ns
    ends()
    prepare(with_documents(run, 2))
    ends()
    small = (data / "tokenizer.json").read_bytes()
    assert small != tokenizer
    assert f"{data / 'tokenizer.json'}: made anew (documents_count 60, now 2)" in capsys.readouterr().out
    prepare(whole)
    ends()
    assert (data / "tokenizer.json").read_bytes() == tokenizer
    assert json.loads((data / "train/index.json").read_text())["shards"][0]["samples"] == 60
    assert (data / "probe").stat().st_mtime_ns == pictures
    prepare(with_documents(run, 60, image_size=32))
    assert (data / "probe").stat().st_mtime_ns != pictures


def test_the_pairs_of_a_run_share_its_tokenizer_but_not_its_folder(run: Any, tmp_path: Path, ends: Any):
    prepare(run)
    tokenizer = (tmp_path / "data/tokenizer.json").stat().st_mtime_ns
    with pytest.raises(DataError, match=r"a run is using it, .*\(pairs False, now True\); choose"):
        prepare(with_documents(run, 40, pairs=True))
    ends()
    prepare(with_documents(run, 40, pairs=True))
    assert (tmp_path / "data/tokenizer.json").stat().st_mtime_ns == tokenizer
    assert json.loads((tmp_path / "data/train/index.json").read_text())["shards"][0]["samples"] > 40


def test_what_a_run_uses_is_not_made_anew(run: Any, tmp_path: Path, ends: Any):
    prepare(run)
    prepare(run)  # another run of the same settings
    index = (tmp_path / "data/train/index.json").read_bytes()
    with pytest.raises(DataError, match=r"a run is using it, .*\(documents_count 40, now 80\); choose"):
        prepare(with_documents(run, 80))
    assert (tmp_path / "data/train/index.json").read_bytes() == index
    ends()
    prepare(with_documents(run, 80))
    assert (tmp_path / "data/train/index.json").read_bytes() != index


def test_a_tokenizer_and_pictures_of_the_users_own_are_left_alone(run: Any, tmp_path: Path, ends: Any):
    data = tmp_path / "data"
    (data / "probe/train").mkdir(parents=True)
    (data / "tokenizer.json").write_text("mine")
    for count in (40, 50):
        prepare(with_documents(run, count))
        ends()
    assert (data / "tokenizer.json").read_text() == "mine"
    assert list((data / "probe").iterdir()) == [data / "probe/train"]


def test_a_process_killed_before_the_tokenizer_was_there_leaves_it_to_the_next(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Any
):
    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_bpe", die)
        with pytest.raises(KeyboardInterrupt):
            prepare(run)
    ends()
    prepare(run)
    assert (tmp_path / "data/tokenizer.json").exists()


def test_more_than_generated_pictures_is_not_deleted(run: Any, tmp_path: Path, ends: Any):
    prepare(run)
    ends()
    (tmp_path / "data/probe/mine.txt").write_text("mine")
    with pytest.raises(DataError, match="holds more than generated pictures"):
        prepare(with_documents(run, 40, image_size=32))


@pytest.mark.parametrize("key", ["probe", "zero_shot"])
def test_a_mistyped_folder_of_pictures_deletes_none(run: Any, tmp_path: Path, key: str, ends: Any):
    own = [tmp_path / "own" / split / "cat/0.png" for split in ("train", "val")]
    for picture in own:
        picture.parent.mkdir(parents=True)
        picture.write_text("mine")
    asked = str(tmp_path / "own/trian")
    changed = run.model_copy(update={"evaluation": {key: {"train": asked, "val": asked, "images": asked}}})
    prepare(changed)
    assert [picture.read_text() for picture in own] == ["mine"] * 2
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["train", "val"]


def test_a_folder_of_pictures_may_be_one_name(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Any
):
    """Beside which lie whatever files: nothing is made there."""
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    prepare(run.model_copy(update={"evaluation": {"zero_shot": {"images": "pictures"}}}))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*before, "data"})


def test_the_images_of_zero_shot_are_made_too(run: Any, monkeypatch: pytest.MonkeyPatch):
    made: list[Path] = []
    monkeypatch.setattr(module, "_make", lambda path, *_: made.append(path))
    images = Path(run.evaluation["probe"]["val"])
    prepare(run.model_copy(update={"evaluation": {"zero_shot": {"images": str(images)}}}))
    assert made[-1] == images.parent
    prepare(run.model_copy(update={"evaluation": {}}))
    assert made[-1].name == "tokenizer.json"
