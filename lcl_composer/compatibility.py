"""What Composer 0.32.1 does not do safely, exactly, or on a newer torch; and torchrun's restarts.

A checkpoint names the algorithms that it was trained with, each with a ``repr`` that Composer evaluates as
Python (composer/core/state.py, 1132), also where ``torch.load`` runs no code.

What ``device_train_microbatch_size: auto`` swaps under FSDP is defined for torch < 2.7.1 only and swapped on
every torch: NameError (composer/trainer/_patch_pytorch.py, 28 and 30).
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from lcl_composer.ddp import SameBuckets


def mend_composer() -> None:
    """Mend Composer; call before a Trainer is built.

    The algorithms of a checkpoint are never built of it: a run has those of its YAML, and the callback
    CheckpointContents tells what it drops. Where Composer's patched ``unshard`` is missing it gets torch's
    own; without Composer's the search for a microbatch does not synchronise the ranks after an allocation.
    Models are wrapped by :class:`SameBuckets`.
    """
    from composer.core import State
    from composer.distributed import dist_strategy
    from composer.trainer import _patch_pytorch
    from torch.distributed.fsdp._flat_param import FlatParamHandle

    dist_strategy.DistributedDataParallel = SameBuckets  # pyright: ignore[reportPrivateImportUsage]
    State._apply_required_algorithms = lambda *_, **__: None  # type: ignore[method-assign]
    if not hasattr(_patch_pytorch, "original_unshard"):
        for name in ("original_unshard", "unshard_with_sync"):
            setattr(_patch_pytorch, name, FlatParamHandle.unshard)


def mend_torchrun() -> None:
    """Let ranks that torchrun has started again meet anew; call before the process group is made.

    With ``--master-port`` its agent keeps one store over all attempts and torch adds no prefix to its keys
    (torch/distributed/rendezvous.py, ``_create_c10d_store``; it expects a new store for each): ranks find the
    addresses of those that are gone, and the restart fails by chance.
    """
    torch_distributed: Any = importlib.import_module("torch.distributed")
    rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")  # a function hides the module
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    original = rendezvous._create_c10d_store
    if attempt == "0" or getattr(original, "of_attempt", None) == attempt:
        return

    def made(*arguments: object, **options: object) -> Any:
        return torch_distributed.PrefixStore(f"attempt {attempt}", original(*arguments, **options))

    made.of_attempt = attempt  # pyright: ignore[reportFunctionMemberAccess]
    rendezvous._create_c10d_store = made
