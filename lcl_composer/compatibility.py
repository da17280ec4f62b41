"""Composer 0.32.1 on a torch newer than the one it pins.

What ``device_train_microbatch_size: auto`` swaps under FSDP is defined for torch < 2.7.1 only and swapped on
every torch: NameError (composer/trainer/_patch_pytorch.py, 28 and 30).
"""

from __future__ import annotations


def mend_composer() -> None:
    """Give Composer torch's own ``unshard`` where its patched one is missing; call before a Trainer is built.

    Without Composer's the search for a microbatch does not synchronise the ranks after an allocation.
    """
    from composer.trainer import _patch_pytorch
    from torch.distributed.fsdp._flat_param import FlatParamHandle

    if not hasattr(_patch_pytorch, "original_unshard"):
        for name in ("original_unshard", "unshard_with_sync"):
            setattr(_patch_pytorch, name, FlatParamHandle.unshard)
