"""Checkpoints without code in them: reading Composer's under torch's restricted unpickler."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lcl_composer.errors import DataError


def only_safe_loads() -> None:
    """Make every ``torch.load`` of this process, Composer's own included, refuse code.

    Composer hard-codes ``weights_only=False``; torch's environment switch overrules it. The types that a
    Composer checkpoint holds besides tensors are allowed by name. Call before a Trainer is built.
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    numpy_types: list[Any] = [
        np.ndarray,
        np.dtype,
        np._core.multiarray._reconstruct,
        np._core.multiarray.scalar,
    ]
    numpy_types += [type(np.dtype(name)) for name in ("uint32", "int64", "float64", "float32")]
    torch.serialization.add_safe_globals([torch.torch_version.TorchVersion, datetime.timedelta, *numpy_types])


def read_model_state(path: str | Path) -> dict[str, Tensor]:
    """The model's tensors in a Composer checkpoint, without DDP's or torch.compile's prefixes.

    Raises:
        DataError: If the file is missing, truncated, holds code, or is no Composer checkpoint.
    """
    only_safe_loads()
    if not Path(path).is_file():
        raise DataError(f"checkpoint {path}: no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = checkpoint["state"]["model"]
    except (KeyError, TypeError) as error:
        raise DataError(f"checkpoint {path}: not a Composer checkpoint (no state.model)") from error
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... by kind of damage
        raise DataError(
            f"checkpoint {path}: cannot be read, it is truncated or holds code: {error}"
        ) from error
    return {name.removeprefix("module.").replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
