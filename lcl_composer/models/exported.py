"""Encoders that this project exported: ``config.json``, ``model.safetensors``, and the pooler's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lcl_composer.errors import ConfigError, DataError, one_line
from lcl_composer.json_data import load_json
from lcl_composer.links import refuse_links
from lcl_composer.models.finite import check_finite
from lcl_composer.models.weights import no_memory
from lcl_composer.registry import encoders, poolers

if TYPE_CHECKING:
    from lcl_composer.models.encoder import Encoder
    from lcl_composer.models.pooler import AttentivePooler

CONFIG_FILE, ENCODER_FILE, POOLER_FILE = "config.json", "model.safetensors", "pooler.safetensors"

#: What ``config.json`` says of every encoder.
_NEEDED = ("encoder", "tokens_per_image", "width", "mean", "std")


def exported_encoder(folder: str) -> Encoder:
    """The encoder of a folder that a run or ``lcl export`` wrote, with its own size and normalisation.

    Args:
        folder: Such as ``runs/NAME/encoder``.

    Raises:
        DataError: If a file is missing, damaged, not finite, or does not fit the architecture in
            ``config.json``.
    """
    build = untrained_encoder if no_memory() else load_encoder
    encoder, _ = build(folder)
    encoder.source = f"the exported {folder} ({encoder.source})"
    return encoder.train()


def load_encoder(folder: str | Path) -> tuple[Encoder, AttentivePooler | None]:
    """Read an exported encoder: ``encoder(pixel_values)`` gives patch tokens, ``pooler(tokens)`` the latent.

    Both are in eval mode; the pooler is None where the method had none.

    Raises:
        DataError: If a file is missing, damaged, not finite, or does not fit the architecture in
            ``config.json``.
    """
    folder = Path(folder)
    encoder, pooler = untrained_encoder(folder)
    try:
        encoder.backbone.load_state_dict(load_file(folder / ENCODER_FILE))
        if pooler is not None:
            pooler.load_state_dict(load_file(folder / POOLER_FILE))
    except (SafetensorError, RuntimeError) as error:
        raise _damaged(folder, one_line(error)) from error
    check_finite(f"encoder {folder}", image_side_weights(encoder, pooler))
    encoder.came_with_weights(f"encoder {folder}")
    return encoder, pooler


def image_side_weights(encoder: Encoder, pooler: AttentivePooler | None) -> dict[str, Tensor]:
    """The tensors of both by name."""
    return encoder.state_dict() | (pooler.state_dict() if pooler is not None else {})


def untrained_encoder(folder: str | Path) -> tuple[Encoder, AttentivePooler | None]:
    """The architecture of an exported encoder with random weights, in eval mode, to compare with.

    Raises:
        DataError: If a file is missing, or ``config.json`` is damaged.
    """
    folder = Path(folder)
    refuse_links(folder, (folder / name for name in (CONFIG_FILE, ENCODER_FILE, POOLER_FILE)))
    description = _read_description(folder)
    for name in (ENCODER_FILE, *([POOLER_FILE] if "pooler" in description else [])):
        if not (folder / name).is_file():
            raise DataError(f"{folder}: not an exported encoder, {name} is missing")
    try:
        encoder = _build(description)
        sizes = {key: description[key] for key in ("width", "embed_dim") if key in description}
        pooler = poolers.build(description["pooler"], **sizes) if "pooler" in description else None
    except (LookupError, ValueError, TypeError, AttributeError, ConfigError) as error:
        raise _damaged(folder, one_line(error)) from error
    return encoder.eval(), pooler.eval() if pooler is not None else None


def _read_description(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says of encoder and pooler; raises as :func:`untrained_encoder` does."""
    path = folder / CONFIG_FILE
    try:
        found = load_json(path.read_text())
    except OSError as error:
        raise DataError(_missing(folder)) from error
    except ValueError as error:
        raise _damaged(folder, f"{CONFIG_FILE} is no JSON ({one_line(error)})") from error
    if not isinstance(found, dict):
        raise _damaged(folder, f"{CONFIG_FILE} holds a {type(found).__name__}, not names with values")
    needed = [*_NEEDED, *(["embed_dim"] if "pooler" in found else [])]
    if absent := [key for key in needed if key not in found]:
        raise _damaged(folder, f"{CONFIG_FILE} does not say {', '.join(absent)}")
    for key in ("encoder", "pooler"):
        if not isinstance(found.get(key, {}), dict):
            raise _damaged(
                folder, f"{CONFIG_FILE} says {key} by a {type(found[key]).__name__}, not by settings"
            )
    return found


def _damaged(folder: Path, problem: str) -> DataError:
    return DataError(
        f"{folder}: damaged or not an exported encoder: {problem}; copy it anew, or write one with "
        "'lcl export RUN OUT --format encoder'"
    )


def architecture(recipe: dict[str, Any]) -> dict[str, Any]:
    """What a recipe says of the architecture: no weights are read but those that lie beside it.

    Raises:
        ValueError: If it is no recipe that an :class:`Encoder` gives.
    """
    if recipe.get("name") == "exported":
        raise ValueError("its recipe is that of another exported encoder")
    return {key: value for key, value in recipe.items() if key not in ("pretrained", "weights")}


def _build(description: dict[str, Any]) -> Encoder:
    """Build what ``config.json`` describes.

    Raises:
        ValueError: If what is built does not give the tokens that it describes.
    """
    normalisation = {key: description[key] for key in ("mean", "std")}
    encoder = encoders.build({**architecture(description["encoder"]), **normalisation})
    described = (description["tokens_per_image"], description["width"])
    if (encoder.tokens_per_image, encoder.width) != described:
        raise ValueError(
            f"gives {encoder.tokens_per_image} tokens of {encoder.width}, {CONFIG_FILE} says "
            f"{described[0]} of {described[1]}"
        )
    return encoder


def _missing(folder: Path) -> str:
    """That there is no encoder in a folder, and where there is one."""
    if not folder.is_dir():
        return f"{folder}: no such folder; an exported encoder is one such as runs/NAME/encoder"
    near = folder / "encoder"
    hint = f"; did you mean {near}?" if (near / CONFIG_FILE).is_file() else ""
    return f"{folder}: not an exported encoder, {CONFIG_FILE} is missing{hint}"
