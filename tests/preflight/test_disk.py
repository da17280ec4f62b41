from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import psutil
import pytest

from lcl_composer.preflight import disk
from lcl_composer.preflight.world import World
from tests.preflight.plans import cached, plan_of

ELSEWHERE = World(rank=1, size=2, node=1)


def free(count: float) -> Any:
    return mock.patch.object(psutil, "disk_usage", return_value=SimpleNamespace(free=count))


def test_checkpoints_and_one_more_must_fit(data: Path) -> None:
    plan = plan_of(data, save_num_checkpoints_to_keep=2)
    need = 3 * plan.sizes.checkpoint
    with free(need):
        assert disk.disk(plan).status == "ok"
    with free(need - 1):
        found = disk.disk(plan)
    assert (found.status, "3 checkpoints of" in found.message) == ("fail", True)
    with free(0):
        assert disk.disk(plan_of(data, world=ELSEWHERE)).status == "ok"  # rank 0's node writes them


def test_all_checkpoints_of_a_run_are_counted(data: Path) -> None:
    """20ba by 5ba, and one at the end; where units differ nobody knows, which is said."""
    plan = plan_of(data)
    (need,) = disk.checkpoints(plan)
    assert need.bytes == 5 * plan.sizes.checkpoint
    (need,) = disk.checkpoints(plan_of(data, save_interval="0.25dur"))
    assert need.bytes == 5 * plan.sizes.checkpoint
    assert disk.disk(plan).status == "ok"
    assert "nobody knows how many" in disk.disk(plan_of(data, save_interval="1ep")).message


def test_caches_count_what_is_not_there_yet(data: Path) -> None:
    plan = plan_of(data, data=cached(data), world=ELSEWHERE)
    (seen,) = plan.looked["data.train"]
    entries = json.loads((data / "train/index.json").read_text())["shards"]
    whole = sum(entry["raw_data"]["bytes"] for entry in entries)
    assert seen.bytes == whole
    (need,) = disk.caches(plan)
    assert need.bytes == whole + seen.largest
    Path("cache").mkdir()
    for raw in (entry["raw_data"] for entry in entries[:2]):
        Path("cache", raw["basename"]).write_bytes(bytes(raw["bytes"]))
        need = need._replace(bytes=need.bytes - raw["bytes"])
    assert list(disk.caches(plan)) == [need]
    with free(need.bytes - 1):
        assert disk.disk(plan).status == "fail"


def test_the_cache_limit(data: Path) -> None:
    limited = plan_of(data, data=cached(data, cache_limit=30_000), world=ELSEWHERE)
    (need,) = disk.caches(limited)
    largest = limited.looked["data.train"][0].largest
    assert need.bytes == 30_000 + largest
    assert "shards are fetched again every epoch" in disk.cache_limit(limited).message
    small = disk.cache_limit(plan_of(data, data=cached(data, cache_limit=4 * largest - 1)))
    assert (small.status, "which Streaming refuses" in small.message) == ("fail", True)
    assert disk.cache_limit(plan_of(data)).message == "not reached"


def test_a_remote_for_checkpoints_takes_two_on_their_way(data: Path) -> None:
    plan = plan_of(data, save_folder="s3://bucket/{run_name}")
    (need,) = disk.checkpoints(plan)
    assert (need.bytes, need.place.is_dir()) == (2 * plan.sizes.checkpoint, True)


def test_write_access_leaves_nothing(data: Path, tmp_path: Path) -> None:
    plan = plan_of(data)
    made = disk.begin_probes(plan)
    assert disk.write_access(plan).status == "ok"
    disk.end_probes(plan, made)
    assert not Path("runs").exists()


def test_a_folder_that_cannot_be_written(data: Path) -> None:
    Path("file").touch()
    found = disk.write_access(plan_of(data, save_folder="file/checkpoints"))
    assert (found.status, "file/checkpoints cannot be written (Not a directory)" in found.message) == (
        "fail",
        True,
    )


def test_other_nodes_must_see_the_same_folder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_SEEN_WITHIN", 0.3)
    first, second = plan_of(data), plan_of(data, world=ELSEWHERE)
    made = disk.begin_probes(first)
    assert disk.write_access(second).status == "ok"
    disk.end_probes(first, made)
    found = disk.write_access(second)
    assert (found.status, "is not the folder that node 0 sees" in found.message) == ("fail", True)


class Store:
    """An object store in a dictionary."""

    def __init__(self, broken: str = ""):
        self.objects: dict[str, bytes] = {}
        self.broken = broken

    def upload_object(self, name: str, path: Path) -> None:
        if self.broken == "refuses":
            raise PermissionError("AccessDenied")
        self.objects[name] = b"another" if self.broken == "forgets" else path.read_bytes()

    def download_object(self, name: str, path: Path) -> None:
        path.write_bytes(self.objects[name])


@pytest.mark.parametrize(
    ("broken", "status", "said"),
    [
        ("", "ok", "s3://bucket/tiny"),
        ("refuses", "fail", "AccessDenied"),
        ("forgets", "fail", "not what was written"),
    ],
)
def test_a_remote_is_written_and_read(data: Path, broken: str, status: str, said: str) -> None:
    plan, store = plan_of(data, save_folder="s3://bucket/{run_name}"), Store(broken)
    with mock.patch("composer.utils.maybe_create_object_store_from_uri", return_value=store):
        found = disk.write_access(plan)
    assert (found.status, said in found.message) == (status, True)
    assert broken == "refuses" or list(store.objects) == ["tiny/.preflight-node0"]
