from __future__ import annotations

import pytest
from composer.trainer import _patch_pytorch
from torch.distributed.fsdp._flat_param import FlatParamHandle

from lcl_composer.compatibility import mend_composer

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
