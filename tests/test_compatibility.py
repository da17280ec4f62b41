from __future__ import annotations

import importlib
from datetime import timedelta

import pytest
from composer.trainer import _patch_pytorch
from torch.distributed import Store, TCPStore
from torch.distributed.fsdp._flat_param import FlatParamHandle

from benchmarks.jobs import free_port
from lcl_composer.compatibility import mend_composer, mend_torchrun

NAMES = ("original_unshard", "unshard_with_sync")


@pytest.fixture
def _newer_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Composer as torch >= 2.7.1 finds it, whatever torch is here; all is put back."""
    monkeypatch.setattr(FlatParamHandle, "unshard", FlatParamHandle.unshard)
    for name in NAMES:
        monkeypatch.setattr(_patch_pytorch, name, None, raising=False)
        monkeypatch.delattr(_patch_pytorch, name)


@pytest.mark.usefixtures("_newer_torch")
def test_automatic_microbatches_under_fsdp_find_what_they_swap():
    own = FlatParamHandle.unshard
    for found in (False, True):
        with pytest.raises(NameError):
            _patch_pytorch.patch_unshard_for_automicrobatching(found)
    mend_composer()
    for found in (False, True):
        _patch_pytorch.patch_unshard_for_automicrobatching(found)
        assert FlatParamHandle.unshard is own


def test_composers_own_is_kept(monkeypatch: pytest.MonkeyPatch):
    for name in NAMES:
        monkeypatch.setattr(_patch_pytorch, name, name, raising=False)
    mend_composer()
    assert [getattr(_patch_pytorch, name) for name in NAMES] == list(NAMES)


def test_ranks_that_torchrun_starts_again_do_not_see_what_is_past(monkeypatch: pytest.MonkeyPatch):
    rendezvous = importlib.import_module("torch.distributed.rendezvous")
    monkeypatch.setattr(rendezvous, "_create_c10d_store", rendezvous._create_c10d_store)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    port = free_port()
    agent = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)  # lives over all attempts

    def store(attempt: str) -> Store:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        mend_torchrun()
        return rendezvous._create_c10d_store("127.0.0.1", port, 0, 1, timedelta(seconds=10))

    store("0").set("address of rank 1", "gone")
    assert agent.check(["address of rank 1"])
    assert not store("1").check(["address of rank 1"])
    store("1").set("address of rank 1", "new")
    assert store("1").get("address of rank 1") == b"new"
