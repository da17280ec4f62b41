"""`data.*.local` or `data.*.streams`: one of them, and streams that can be mixed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lcl_composer.config import compose
from lcl_composer.config.diagnose import known_keys
from lcl_composer.errors import ConfigError
from tests.runs import settings, write_yaml

A, B = {"local": "/a"}, {"local": "/b"}


def run(tmp_path: Path, train: object):
    values = settings(tmp_path)
    values["data"]["train"] = train
    return compose(write_yaml(tmp_path, values), []).run


@pytest.mark.parametrize(
    "streams",
    [
        {"a": A},
        {"a": {**A, "proportion": 0.5}, "b": {**B, "proportion": 2.0}},
        {"a": {**A, "repeat": 2.0}, "b": {**B, "choose": 5}, "c": {"local": "/c"}},
        {"a": {**A, "split": "x"}, "b": {**A, "split": "y"}},
    ],
)
def test_streams(tmp_path: Path, streams: dict[str, dict[str, object]]):
    train = run(tmp_path, {"streams": streams}).data.train
    assert list(train.streams or ()) == list(streams)
    assert train.local is None


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({}, "data.train: has neither local nor streams; give one of them"),
        ({"streams": {}}, "data.train: streams is empty"),
        ({**A, "streams": {"b": B}}, "data.train: has streams and local; remove local"),
        ({"split": "x", "streams": {"b": B}}, "has streams and split; remove split or move it into a stream"),
        (
            {"streams": {"a": {**A, "proportion": 1.0}, "b": {**B, "repeat": 2.0}}},
            "streams.a has a proportion, streams.b repeat or choose; shares and amounts do not mix",
        ),
        (
            {"streams": {"a": {**A, "proportion": 1.0}, "b": B}},
            "data.train: streams.b has no proportion, streams.a has; give one to all streams",
        ),
        (
            {"streams": {"a": {**A, "repeat": 1.0, "choose": 3}}},
            "data.train.streams.a: has repeat and choose; give one of them",
        ),
        (
            {"epoch_size": 9, "streams": {"a": {**A, "repeat": 1.0}}},
            "epoch_size does not go with streams.a's",
        ),
        ({"streams": {"a": A, "b": A}}, "streams.b and streams.a have the same local folder"),
        (
            {"streams": {"a": {**A, "proportion": -1.0}}},
            "data.train.streams.a.proportion: should be greater than 0",
        ),
        ({"streams": {"a": {**A, "propotion": 1.0}}}, "a.propotion: unknown key; did you mean 'proportion'?"),
        ({"streams": {"a": {"remote": "s3://x"}}}, "data.train.streams.a.local: missing; give it a value"),
        ({**A, "batching_method": "device_per_stream"}, "data.train.batching_method: should be 'random'"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, train: object, message: str):
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, train)
    assert message in str(caught.value)


def test_other_problems_are_told_in_the_same_go(tmp_path: Path):
    values = settings(tmp_path, seeed=3)
    values["data"]["train"] = {}
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*has neither local nor streams"):
        compose(write_yaml(tmp_path, values), [])


def test_keys_below_a_name_of_the_users_own():
    assert "max_images" in (known_keys(("data", "train", "streams", "anything"), {}) or [])
    assert known_keys(("data", "train", "streams"), {}) is None


def test_an_experiment_changes_one_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DATA_ROOT", "/data")
    yamls = Path(__file__).parents[2] / "yamls"
    path = tmp_path / "mine.yaml"
    changes = {"data": {"train": {"streams": {"mmc4": {"remote": "s3://bucket/mmc4"}}}}}
    path.write_text(yaml.safe_dump({"extends": [str(yamls / "pretrain/vit_b16_laion_mmc4.yaml")], **changes}))
    streams = compose(path, []).run.data.train.streams or {}
    assert (streams["mmc4"].local, streams["mmc4"].remote) == ("/data/mmc4", "s3://bucket/mmc4")
    assert streams["laion"].proportion == streams["mmc4"].proportion == 0.5
