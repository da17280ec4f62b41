"""Sharded checkpoints (torch.distributed.checkpoint), read whole, in one process and without running code.

A folder holds ``.metadata``, a pickle that says which tensors there are and where their pieces lie, and
``*.distcp``, in which each piece is what ``torch.save`` wrote. torch reads ``.metadata`` by an unrestricted
unpickler. Here its opcodes are read as data, by ``pickletools``: no class is looked up and nothing is called.
Pieces are read with ``weights_only=True``. Where torch itself reads a checkpoint, to go on from it,
:func:`restrict_metadata` bounds what it builds.
"""

from __future__ import annotations

import io
import pickle  # noqa: TID251 (to restrict it)
import pickletools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict

from lcl_composer.errors import DataError, one_line
from lcl_composer.links import refuse_links

_METADATA = ".metadata"
_MARK = object()


def is_sharded(path: Path) -> bool:
    """Whether a folder is a sharded checkpoint."""
    return (path / _METADATA).is_file()


@dataclass(eq=False)
class Thing:
    """An object of a pickle, not built: its class or function, what it is made of, and its state.

    As a key of a mapping each is another one.
    """

    name: str
    arguments: Any = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def __getitem__(self, key: str) -> Any:
        return self.state[key]


def read_sharded(folder: Path, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A sharded checkpoint as the mapping that was saved; what was empty in it is left out.

    Args:
        folder: Holds ``.metadata`` and ``*.distcp``.
        without: Flat names that begin so are not read, such as ``state.optimizers.``.

    Raises:
        DataError: If a file is missing, damaged, or holds code.
    """
    refuse_links(folder, [folder / _METADATA, *folder.glob("*.distcp")])
    try:
        metadata = read_without_code((folder / _METADATA).read_bytes())
        pieces: dict[str, list[tuple[tuple[int, ...], Any]]] = {}
        for index, info in metadata["storage_data"].items():
            offset = index.state.get("offset")
            place = offset.arguments[0] if offset is not None else ()
            pieces.setdefault(index["fqn"], []).append((place, info))
        values = {
            name: _value(folder, of, pieces[name])
            for name, of in metadata["state_dict_metadata"].items()
            if not name.startswith(without)
        }
        places = {name: metadata["planner_data"][name] for name in values}
        return dict(unflatten_state_dict(values, places))
    except (OSError, LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise DataError(f"checkpoint {folder}: cannot be read: {one_line(error)}") from error
    except Exception as error:  # torch's UnpicklingError is no RuntimeError
        raise DataError(f"checkpoint {folder}: damaged or holds code: {one_line(error, 120)}") from error


def _value(folder: Path, of: Thing, pieces: list[tuple[tuple[int, ...], Any]]) -> Any:
    """A tensor put together of its pieces, or a value."""
    if not of.name.endswith("TensorStorageMetadata"):
        return _piece(folder, pieces[0][1])
    parts: list[tuple[tuple[int, ...], Tensor]] = [(offset, _piece(folder, info)) for offset, info in pieces]
    whole = parts[0][1].new_empty(tuple(of["size"].arguments[0]))
    for offset, part in parts:
        region = tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))
        whole[region] = part
    if (filled := sum(part.numel() for _, part in parts)) != whole.numel():
        raise ValueError(f"{filled} values of a tensor of {tuple(whole.shape)} are there")
    return whole


def _piece(folder: Path, info: Thing) -> Any:
    """What ``torch.save`` wrote at a place of a file."""
    if info.state.get("transform_descriptors"):
        raise ValueError("its pieces are compressed")
    name = info["relative_path"]
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no file of the folder")
    with (folder / name).open("rb") as file:
        file.seek(info["offset"])
        content = file.read(info["length"])
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def read_without_code(content: bytes) -> Any:
    """The value of a pickle, in which every object is a :class:`Thing`.

    Raises:
        ValueError: If it is damaged, or has an opcode that no metadata needs.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _PLAIN:
            stack.append(argument)
        elif name in _STEPS:
            _STEPS[name](stack, argument)
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"opcode {name} has no place in a checkpoint's metadata")
    raise ValueError("it ends early")


#: All that torch writes into ``.metadata``: what describes tensors, and where their pieces lie.
_OF_METADATA = frozenset({
    "collections.OrderedDict", "pathlib.PosixPath", "torch.Size", "torch.serialization._get_layout",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.distributed.checkpoint.filesystem._StoragePrefix",
    *(f"torch.distributed.checkpoint.metadata.{name}" for name in (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )),
})  # fmt: skip


class _OfMetadata(pickle.Unpickler):
    """Builds what a checkpoint's metadata is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class of the list, or a dtype of torch.

        Raises:
            UnpicklingError: If it is another.
        """
        known = f"{module}.{name}" in _OF_METADATA
        if not known and not (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint's metadata")
        return super().find_class(module, name)


class _Restricted:
    """Stands for the module ``pickle`` where torch reads ``.metadata``."""

    @staticmethod
    def load(file: Any) -> Any:
        """Read metadata; raises UnpicklingError at anything else."""
        return _OfMetadata(file).load()

    def __getattr__(self, name: str) -> Any:
        return getattr(pickle, name)


def restrict_metadata() -> None:
    """Make torch, and so Composer, read sharded checkpoints without running code in ``.metadata``."""
    filesystem.pickle = _Restricted()  # type: ignore[attr-defined]


_CONSTANTS: Mapping[str, Any] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}
_PLAIN = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
_PLAIN |= {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"}


def _since_mark(stack: list[Any]) -> list[Any]:
    """Take what lies above the last mark, and the mark."""
    at = next(i for i in reversed(range(len(stack))) if stack[i] is _MARK)
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


def _make(stack: list[Any], _: Any) -> None:
    arguments = stack.pop()
    stack.append(Thing(stack.pop().name, arguments))


def _build(stack: list[Any], _: Any) -> None:
    state = stack.pop()
    stack[-1].state = state


def _extend(stack: list[Any], _: Any) -> None:
    items = _since_mark(stack)
    (stack[-1].items if isinstance(stack[-1], Thing) else stack[-1]).extend(items)


def _set_items(stack: list[Any], _: Any) -> None:
    items = _since_mark(stack)
    target = stack[-1]
    if isinstance(target, Thing):  # an OrderedDict: nothing that is read here
        target.items.extend(items)
    else:
        target.update(_pairs(items))


def _set_item(stack: list[Any], _: Any) -> None:
    value, key = stack.pop(), stack.pop()
    stack[-1][key] = value


def _tuple(count: int) -> Any:
    def step(stack: list[Any], _: Any) -> None:
        stack[-count:] = [tuple(stack[-count:])]

    return step


_STEPS: Mapping[str, Any] = {
    "GLOBAL": lambda stack, argument: stack.append(Thing(argument.replace(" ", "."))),
    "STACK_GLOBAL": lambda stack, _: stack.append(Thing(f"{stack.pop(-2)}.{stack.pop()}")),
    "NEWOBJ": _make,
    "REDUCE": _make,
    "BUILD": _build,
    "APPEND": lambda stack, _: stack[-2].append(stack.pop()),
    "APPENDS": _extend,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "TUPLE": lambda stack, _: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
}
