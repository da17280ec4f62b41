"""Which of a run's settings name files, and that these are told apart by what they hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lcl_composer.inputs import digest_of, digests_of


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, text: str = "one") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return path


def test_all_that_a_run_reads_and_nothing_that_it_writes() -> None:
    for path in ("w.pt", "teacher/w.pt", "val/cat/1.png", "out/x", "imagenet/x", "clip/x", "run.pt"):
        write(path)
    for folder in ("train/a", "train/b/val", "eval"):
        write(f"{folder}/index.json")
    settings: dict[str, Any] = {
        "model": {"encoder": {"name": "clip", "weights": "w.pt", "model": "ViT-B-16"}, "pooler": None},
        "method": {"name": "mine", "teachers": ["teacher/w.pt"], "backend": "out"},
        "data": {
            "train": {
                "local": None,
                "streams": {"a": {"local": "train/a"}, "b": {"local": "train/b", "split": "val"}},
            },
            "eval": {"local": "eval", "streams": None},
            "image_size": 32,
        },
        "evaluation": {"zero_shot": {"images": "val", "names": "imagenet", "templates": ["a {}."]}},
        "callbacks": {"knn": {"train": "val", "val": "nowhere"}, "memory_snapshot": {"folder": "out"}},
        "algorithms": {"feature_cache": {"folder": "out"}},
        "load_path": "run.pt",
        "save_folder": "out",
    }
    assert set(digests_of(settings)) == {
        "model.encoder.weights",
        "method.teachers.0",
        "data.train.streams.a.local",
        "data.train.streams.b.local",
        "data.eval.local",
        "evaluation.zero_shot.images",
        "callbacks.knn.train",
        "load_path",
    }
    assert digests_of({}) == {}


def test_a_folder_is_told_by_what_is_read_of_it() -> None:
    """Images by names and sizes, a model by its own files, shards by their index; wherever they lie."""
    write("a/cat/1.png"), write("a/dog/2.png")
    first = digest_of("images", "a")
    write("a/.DS_Store")
    assert digest_of("images", "a") == first
    os.rename("a", "b")
    assert digest_of("images", "b") == first
    os.rename("b/dog/2.png", "b/cat/2.png")
    assert digest_of("images", "b") != first
    os.rename("b/cat/2.png", "b/dog/2.png")
    assert digest_of("images", "b") == first
    write("b/dog/2.png", "another")
    assert digest_of("images", "b") != first
    write("m/config.json"), write("m/model.safetensors")
    model = digest_of("pretrained", "m")
    write("m/README.md"), write("m/checkpoints/1.pt")
    assert digest_of("pretrained", "m") == model
    write("m/model.safetensors", "two")  # as long as before
    assert digest_of("pretrained", "m") != model
    write("s/index.json"), write("s/shard.0.mds")
    shards = digest_of("images", "s")
    write("s/classes.json")
    assert digest_of("images", "s") == shards


def test_a_file_that_is_overwritten_in_place_is_another_one() -> None:
    write("w.pt", "one")
    first = digest_of("weights", "w.pt")
    assert digest_of("weights", "./w.pt") == first
    with open("w.pt", "r+") as file:
        file.write("two")
    assert digest_of("weights", "w.pt") not in ("", first)
    assert digest_of("weights", "gone.pt") == digest_of("weights", None) == digest_of("weights", "a\0b") == ""


def test_of_a_model_on_the_hub_it_is_the_cached_revision(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    settings = {"model": {"language_model": {"pretrained": "me/opt"}, "encoder": {"pretrained": True}}}
    assert digests_of(settings) == {}
    write("hub/models--me--opt/refs/main", "abc1")
    write("hub/models--me--opt/snapshots/abc1/config.json")
    assert digests_of(settings) == {"model.language_model.pretrained": "abc1"}
