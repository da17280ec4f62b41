"""Checkpoints without code in them: reading Composer's under torch's restricted unpickler."""

from __future__ import annotations

import datetime
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lcl_composer.errors import DataError, one_line
from lcl_composer.models.finite import check_finite
from lcl_composer.sharded import is_sharded, read_sharded, restrict_metadata

#: Under which a checkpoint keeps what its run was (the callback CheckpointContents writes it).
CONTENTS = "CheckpointContents"


@dataclass(frozen=True)
class Begun:
    """What a run is, as its checkpoints say it.

    Attributes:
        run_name: The run's name.
        settings: The resolved config; empty in a checkpoint that was written before checkpoints held it.
        documents: Digest of the training documents' indices.
        tokenizer: Digest of the tokenizer.
        ended: Whether training had come to its end, by ``max_duration`` or a stopper.
        stepped: Names of the parameters that have a state of the optimizer.
        encoder: ``recipe`` and ``weights`` of the encoder as it was built, see
            :class:`lcl_composer.models.encoder.Encoder`; empty in older checkpoints.
        target: Digest of the weights that ``model.target_encoder`` came with; "" for none.
    """

    run_name: str
    settings: dict[str, Any]
    documents: str
    tokenizer: str
    ended: bool = False
    stepped: tuple[str, ...] = ()
    encoder: dict[str, Any] = field(default_factory=dict)
    target: str = ""

    @staticmethod
    def of(contents: dict[str, Any], run_name: str = "", stepped: Iterable[str] = ()) -> Begun:
        """Read what the callback CheckpointContents wrote; what older ones left out is empty."""
        return Begun(
            run_name=contents.get("run_name", run_name),
            settings=contents.get("settings", {}),
            documents=contents.get("documents", ""),
            tokenizer=contents.get("tokenizer", ""),
            ended=contents.get("ended", False),
            stepped=tuple(stepped),
            encoder=contents.get("encoder", {}),
            target=contents.get("target", ""),
        )


@dataclass(frozen=True)
class Progress:
    """How far a checkpoint's run had come.

    Attributes:
        batches: Trained.
        documents: Read.
        images: Encoded, over all ranks; None in a checkpoint that was written before they were counted.
    """

    batches: int
    documents: int
    images: int | None


def only_safe_loads() -> None:
    """Make every ``torch.load`` of this process, Composer's own included, refuse code.

    Composer hard-codes ``weights_only=False``; torch's environment switch overrules it. The types that a
    Composer checkpoint holds besides tensors are allowed by name. The same for the metadata of sharded ones.
    Call before a Trainer is built.
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    arrays: list[Any] = [np.ndarray, np.dtype, np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
    arrays += [type(np.dtype(name)) for name in ("uint32", "int64", "float64", "float32")]
    torch.serialization.add_safe_globals([type(torch.__version__), datetime.timedelta, *arrays])
    restrict_metadata()


def read_model_state(path: str | Path, weights: Literal["trained", "ema"] = "trained") -> dict[str, Tensor]:
    """The model's tensors in a Composer checkpoint, without DDP's or torch.compile's prefixes.

    Args:
        path: The checkpoint: a file, or the folder of a sharded one.
        weights: ``trained``, or the average that the ``ema`` algorithm kept beside them; what it does not
            average, as with ``part: encoder``, is the trained.

    Raises:
        DataError: If the file is missing, truncated, holds code, or is no Composer checkpoint, or
            if it holds no average.
    """
    checkpoint = _load(path)
    try:
        tensors: dict[str, Tensor] = dict(checkpoint["state"]["model"])
    except (LookupError, TypeError) as error:
        raise DataError(f"checkpoint {path}: not a Composer checkpoint (no state.model)") from error
    tensors = {n.removeprefix("module.").replace("_orig_mod.", ""): value for n, value in tensors.items()}
    ema = dict(checkpoint["state"].get("algorithms", ())).get("EMA", {})
    if weights == "ema" and "average" not in ema:
        raise DataError(
            f"checkpoint {path}: was trained without ema and holds no average; take the trained weights"
        )
    # Saved after the end of training, the two have changed places.
    swap = (weights == "ema") != ema.get("in_model", False)
    return {**tensors, **ema["average"]} if swap else tensors


def _load(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content, its tensors mapped and not read; of a sharded one without the optimizer's.

    Raises:
        DataError: If the file is missing, truncated or holds code.
    """
    only_safe_loads()
    if is_sharded(Path(path)):
        return read_sharded(Path(path), without=("state.optimizers.", "rng."))
    if not Path(path).is_file():
        raise DataError(f"checkpoint {path}: {_instead_of_a_file(Path(path))}")
    if Path(path).suffix == ".safetensors":
        raise DataError(
            f"checkpoint {path}: holds weights alone and is no checkpoint of a run; to export it name "
            "the folder, to train on from it set model.encoder: {name: exported, folder: ...}"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... by kind of damage
        raise DataError(
            f"checkpoint {path}: cannot be read, it is truncated or holds code: {one_line(error)}"
        ) from error


def _instead_of_a_file(path: Path) -> str:
    """What lies where a checkpoint was to be, and which there is near."""
    if not path.is_dir():
        return "no such file"
    found = [file for folder in (path, path / "checkpoints") for file in folder.glob("ep*-rank0.pt")]
    newest = max(found, key=lambda file: file.stat().st_mtime, default=None)
    return f"is a folder; name a checkpoint in it{f', such as {newest}' if newest else ''}"


def read_begun(path: str | Path) -> Begun:
    """What a checkpoint says of its run.

    Raises:
        DataError: If the file is missing, truncated, holds code, or is no Composer checkpoint.
    """
    try:
        state = _load(path)["state"]
        contents = state.get("callbacks", {}).get(CONTENTS, {})
        optimizers = state.get("optimizers", {}).values()
        stepped = [name for optimizer in optimizers for name in optimizer["state"]]
        return Begun.of(contents, state.get("run_name", ""), stepped)
    except (LookupError, TypeError, AttributeError) as error:
        raise DataError(f"checkpoint {path}: not a Composer checkpoint") from error


def read_progress(path: str | Path) -> Progress | None:
    """How far a checkpoint's run had come; None if it does not say.

    Raises:
        DataError: If the file is missing, truncated or holds code.
    """
    state = _load(path).get("state", {})
    try:
        now = state["timestamp"]["Timestamp"]
        images = state.get("callbacks", {}).get("TrainingMetrics", {}).get("images_seen")
        return Progress(int(now["batch"]), int(now["sample"]), images)
    except (LookupError, TypeError):
        return None


def check_whole(path: str | Path) -> None:
    """Read a checkpoint from end to end: its checksums, and whether its weights are numbers.

    Raises:
        DataError: If the file is missing, damaged, holds code, is no Composer checkpoint, or holds weights
            that are not finite.
    """
    tensors = read_model_state(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"checkpoint {path}: cannot be read: {one_line(error)}") from error
    if damaged:
        raise DataError(f"checkpoint {path}: cannot be read, {damaged} in it does not have its checksum")
    check_finite(f"checkpoint {path}", tensors)


def misfit(path: str | Path, model: nn.Module) -> str:
    """Why the checkpoint cannot be loaded into the model, in a line; empty if it can.

    Raises:
        DataError: If the checkpoint cannot be read.
    """
    theirs = {name: list(tensor.shape) for name, tensor in read_model_state(path).items()}
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    different = sorted(name for name in theirs | ours if theirs.get(name) != ours.get(name))
    if not different:
        return ""
    name = different[0]
    there, here = (str(shapes.get(name, "absent")) for shapes in (theirs, ours))
    return (
        f"checkpoint {path}: another architecture, {len(different)} tensors differ "
        f"({name!r} is {there} there and {here} in this model)"
    )
