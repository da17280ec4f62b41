"""Weights that come from elsewhere: read without running code, recognised by what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lcl_composer.errors import DataError, one_line


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a ``.pt`` that holds a state dict and no code.

    Of a training checkpoint of OpenCLIP it is what stands under ``state_dict``; DistributedDataParallel's
    prefix is taken off.

    Raises:
        DataError: If the file is missing, truncated, holds code, or holds no state dict.
    """
    if not path.is_file():
        raise DataError(f"weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise DataError(f"weights {path}: cannot be read: {one_line(error)}") from error
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... by kind of damage
        raise DataError(
            f"weights {path}: cannot be read, it is truncated or holds code: {one_line(error, 120)}"
        ) from error
    found = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"weights {path}: no state dict (tensors by name)")
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict of which every tensor is wanted and none is missing.

    Raises:
        DataError: Names the first tensor that differs, and how many do.
    """
    ours = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if different := sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name)):
        name = different[0]
        there, here = (str(shapes.get(name, "absent")) for shapes in (theirs, ours))
        raise DataError(
            f"{where}: another architecture, {len(different)} tensors differ "
            f"({name!r} is {there} there and {here} here)"
        )
    module.load_state_dict(dict(state))


def digest_of_weights(module: nn.Module) -> str:
    """SHA-256 of a module's tensors with their names, shapes and types; "" on the meta device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_meta:
            return ""
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def no_memory() -> bool:
    """Whether modules are being built on the meta device, where there is nothing to load weights into."""
    return torch.empty(0).is_meta
