from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import psutil
import pytest
import torch

from lcl_composer.preflight import node
from lcl_composer.preflight.world import World
from tests.preflight.plans import plan_of


@contextmanager
def cards(*free: float, total: float = 80e9) -> Iterator[None]:
    """GPUs with so many free bytes each."""
    properties: Any = SimpleNamespace(total_memory=total, name="H100", major=9, minor=0)
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch.cuda, "device_count", return_value=len(free)),
        mock.patch.object(torch.cuda, "mem_get_info", lambda index: (free[index], total)),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
        mock.patch.object(torch.cuda, "get_device_name", return_value="H100"),
    ):
        yield


@contextmanager
def room(free: float) -> Iterator[None]:
    usage = SimpleNamespace(free=free, total=64e6)
    with mock.patch.object(psutil, "disk_usage", return_value=usage):
        yield


def test_shared_memory_is_counted(data: Path, tmp_path: Path) -> None:
    """Batches that wait (ranks x workers x 2 x documents x bytes) and 8 bytes a document for Streaming."""
    plan = plan_of(data, "data.train.num_workers=3", world=World(size=2, local_size=2))
    need = 2 * 3 * 2 * 2 * plan.sizes.sample + 34 * 8
    with room(need):
        assert node.shared_memory(plan, tmp_path).status == "ok"
    with room(need - 1):
        found = node.shared_memory(plan, tmp_path)
    assert found.status == "fail"
    assert "--shm-size" in found.message


def test_nccl_needs_shared_memory_between_gpus_of_a_node(data: Path, tmp_path: Path) -> None:
    plan = plan_of(data, world=World(size=2, local_size=2), gpu=True)
    with room(0.9e9):
        assert "NCCL 1.07 GB" in node.shared_memory(plan, tmp_path).message


def test_leftovers_of_killed_jobs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, shm = plan_of(data), tmp_path / "shm"
    shm.mkdir()
    monkeypatch.setenv("TMPDIR", str(shm))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert node.leftovers(plan, shm).status == "ok"
    (shm / "000007_epoch_data").write_bytes(bytes(5000))
    found = node.leftovers(plan, shm)
    assert (found.status, "1 segments (5 kB)" in found.message) == ("warn", True)


def test_open_files(data: Path) -> None:
    plan = plan_of(
        data, "data.train.num_workers=8", world=World(size=64, local_size=8), global_train_batch_size=64
    )
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (700, before[1]))
        found = node.open_files(plan)
        assert (found.status, "ulimit -n 4096" in found.message) == ("fail", True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (900, before[1]))
        assert node.open_files(plan).status == "ok"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_gpus(data: Path) -> None:
    plan = plan_of(data, world=World(size=2, local_size=2), gpu=True)
    with cards(79e9, 79e9):
        assert node.gpus(plan).message == "2 x H100, 80 GB"
    with cards(79e9, 60e9):
        found = node.gpus(plan)
        assert (found.status, "GPU 1 has 60 GB free of 80 GB" in found.message) == ("warn", True)
    with cards(79e9):
        assert node.gpus(plan).message == "1 GPUs and 2 ranks on the node; start as many ranks as GPUs"


def test_memory_of_a_gpu(data: Path) -> None:
    plan = plan_of(data, gpu=True)
    full, half = (plan.sizes.resident + 4 * (plan.sizes.sample + plan.sizes.activations // n) for n in (1, 2))
    for total, status in ((1.2 * full, "ok"), (half + 1, "warn"), (half - 1, "fail")):
        with cards(total, total=total):
            assert node.memory(plan).status == status
    smaller = plan_of(data, gpu=True, device_train_microbatch_size=1)
    assert smaller.sizes == plan.sizes
    with cards(half - 1, total=half - 1):
        assert node.memory(smaller).status != "fail"


def test_what_is_counted_on_made_up_documents_is_no_fault(data: Path, tmp_path: Path) -> None:
    made = {"local": "made", "generate": {"name": "shapes", "documents": 8}}
    plan = plan_of(data, data={"image_size": 16, "max_tokens": 64, "train": made}, gpu=True)
    assert plan.sizes.documents == 0
    with cards(1e3, total=1e3):
        assert node.memory(plan).status == "warn"
    with room(0):
        assert node.shared_memory(plan, tmp_path).status == "warn"


def test_fsdp_and_microbatches_of_tokens_need_less(data: Path) -> None:
    two = World(size=2, local_size=2)
    whole, cut = (plan_of(data, *overrides, world=two) for overrides in ([], ["parallelism.fsdp={}"]))
    assert cut.resident == whole.resident // 2
    tokens = plan_of(data, "device_train_microbatch_tokens=64", "method.contrastive_weight=0")
    assert (tokens.microbatch, tokens.device_batch) == (64 // tokens.sizes.tokens, 4)
    assert tokens.microbatch < 4


def test_memory_of_the_host(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    (tmp_path / "groups").write_text("0::/\n")
    found = partial(node.host_memory, tmp_path / "groups", tmp_path)
    monkeypatch.setattr(node, "host_memory", found)
    plan = plan_of(data, world=World(size=4, local_size=4))
    limit.write_text(str(16 << 30))
    assert node.memory(plan).status == "ok"
    limit.write_text(str(2 << 30))  # half a GiB a rank
    assert node.memory(plan).status == "fail"
    limit.write_text("max\n")
    assert found() == pytest.approx(psutil.virtual_memory().available, rel=0.1)


UNLIMITED = "9223372036854771712\n"  # of version 1: the largest whole number of pages
GROUPS = {
    "the narrowest on the way up": ("0::/job/step/task\n", {
        "job/memory.max": "1000", "job/step/memory.max": "3000", "job/step/task/memory.max": "max"}),
    "the innermost": ("0::/job/task\n", {"job/memory.max": "5000", "job/task/memory.max": "1000"}),
    "a container's own": ("0::/\n", {"memory.max": "1000"}),
    "another container's name for it": ("0::/../../pod/x\n", {"memory.max": "1000"}),
    "version 1": ("11:cpuset:/a\n4:memory:/slurm/job\n", {
        "memory/slurm/job/memory.limit_in_bytes": "1000", "memory/slurm/memory.limit_in_bytes": UNLIMITED,
        "cpuset/a/memory.max": "7"}),
    "version 1, further out": ("4:memory:/slurm/job\n", {
        "memory/slurm/job/memory.limit_in_bytes": UNLIMITED, "memory/slurm/memory.limit_in_bytes": "1000"}),
    "version 1 in a container": ("4:memory:/docker/0af\n", {"memory/memory.limit_in_bytes": "1000"}),
    "both versions": ("4:memory:/a\n0::/b\n", {
        "memory/a/memory.limit_in_bytes": "1000", "b/memory.max": "2000"}),
}  # fmt: skip


@pytest.mark.parametrize("case", GROUPS)
def test_the_narrowest_control_group(tmp_path: Path, case: str) -> None:
    groups, files = GROUPS[case]
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    assert node.host_memory(tmp_path / "groups", tmp_path / "root") == 1000


def test_no_control_group(tmp_path: Path) -> None:
    available = pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert node.host_memory(tmp_path / "none", tmp_path) == available
    (tmp_path / "groups").write_text("0::/\n4:memory:/\n")
    assert node.host_memory(tmp_path / "groups", tmp_path) == available
