from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from streaming.base.storage.download import LocalDownloader

from lcl_composer.preflight.finding import Finding
from lcl_composer.preflight.shards import shards
from lcl_composer.preflight.world import World
from tests.preflight.plans import DOCUMENTS, cached, plan_of


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """A copy of the data, to be damaged."""
    return shutil.copytree(data, tmp_path / "copy")


def last_shard(data: Path) -> Path:
    index = json.loads((data / "train/index.json").read_text())
    entry = index["shards"][-1]
    return data / "train" / (entry["zip_data"] or entry["raw_data"])["basename"]


def test_whole_shards_here_and_elsewhere(data: Path) -> None:
    plan = plan_of(data)
    found = shards(plan)
    assert found.status == "ok"
    assert f"{len(DOCUMENTS)} documents in" in found.message
    (seen,) = plan.looked["data.train"]
    assert [d.id for d in seen.documents[:2]] == ["doc-000", "doc-001"]

    remote = shards(plan_of(data, data=cached(data)))
    assert remote.status == "ok"
    assert "fetched at" in remote.message
    assert not Path("cache").exists()  # what was fetched is not left behind


@pytest.mark.parametrize("where", ["local", "remote"])
@pytest.mark.parametrize(
    ("fault", "said"), [("missing", "mds"), ("short", "bytes, not"), ("flipped", "xxh64")]
)
def test_faults_of_the_last_shard(copy: Path, where: str, fault: str, said: str) -> None:
    shard = last_shard(copy)
    content = bytearray(shard.read_bytes())
    if fault == "missing":
        shard.unlink()
    else:
        content[-1] ^= 255
        shard.write_bytes(content[: -10 if fault == "short" else None])
    changes = {"data": cached(copy, download_retry=0)} if where == "remote" else {}
    found = shards(plan_of(copy, **changes))
    assert found.status == "fail"
    assert "data.train" in found.message
    assert said in found.message
    assert shard.name in found.message


def test_no_data_on_this_node(tmp_path: Path, data: Path) -> None:
    shutil.copy(data / "tokenizer.json", tmp_path)
    found = shards(plan_of(tmp_path))
    assert found == Finding(
        "fail",
        f"data.train: no data set in {tmp_path}/train on this node (no index.json there); put it where all "
        "nodes see it, or set remote",
    )


def test_a_remote_that_never_answers_ends_in_time(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalDownloader, "_download_file_impl", lambda *arguments: time.sleep(5))
    begun = time.monotonic()
    found = shards(plan_of(data, data=cached(data, download_retry=0, download_timeout=0.5)))
    assert "did not arrive within 0.5 s" in found.message
    assert time.monotonic() - begun < 4


def test_what_is_generated_is_said(data: Path) -> None:
    generated = {
        "image_size": 16,
        "max_tokens": 64,
        "train": {"local": "made", "generate": {"name": "shapes", "documents": 8}},
    }
    assert shards(plan_of(data, data=generated)).message == "data.train: to be generated"
    two = World(size=2, node=1, rank=1)
    assert shards(plan_of(data, data=generated, world=two)).status == "warn"
