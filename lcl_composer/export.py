"""Take the encoder away: a folder that loads without Composer, and the released layout of the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lcl_composer.config.schema import ModelConfig
from lcl_composer.config.yaml_file import read_yaml
from lcl_composer.errors import ConfigError, DataError, one_line
from lcl_composer.finite import check_finite
from lcl_composer.registry import encoders, poolers

if TYPE_CHECKING:
    from lcl_composer.config.schema import RunConfig
    from lcl_composer.methods.method import Method
    from lcl_composer.models.encoder import Encoder
    from lcl_composer.models.pooler import AttentivePooler

_CONFIG, _ENCODER, _POOLER = "config.json", "model.safetensors", "pooler.safetensors"


def export_encoder(model: Method, config: RunConfig, folder: str | Path) -> Path:
    """Write the encoder and, where there is one, its pooler to ``folder``.

    ``model.safetensors`` holds the backbone under its own library's names: for a timm encoder
    ``timm.create_model(name, checkpoint_path=...)`` reads it. ``config.json`` says how it was built, and
    which pixels it expects.

    Returns:
        The folder.

    Raises:
        DataError: If a weight is not finite.
    """
    pooler = cast("AttentivePooler | None", model.parts.get("pooler"))
    return _write(model.encoder, pooler, config.model, Path(folder))


def _write(encoder: Encoder, pooler: AttentivePooler | None, config: ModelConfig, folder: Path) -> Path:
    check_finite(f"export to {folder}", _weights(encoder, pooler))
    folder.mkdir(parents=True, exist_ok=True)
    _save(encoder.backbone, folder / _ENCODER)
    normalize = encoder.normalize
    description = {
        "encoder": config.encoder.spec() | {"pretrained": None},
        "timm": encoder.timm_args,
        "width": encoder.width,
        "tokens_per_image": encoder.tokens_per_image,
        "mean": (normalize.mean / 255).flatten().tolist(),
        "std": (normalize.std / 255).flatten().tolist(),
    }
    if pooler is not None and config.pooler is not None:
        _save(pooler, folder / _POOLER)
        description |= {"pooler": config.pooler.spec(), "embed_dim": pooler.proj.out_features}
    (folder / _CONFIG).write_text(json.dumps(description, indent=2) + "\n")
    return folder


def load_encoder(folder: str | Path) -> tuple[Encoder, AttentivePooler | None]:
    """Read an exported encoder: ``encoder(pixel_values)`` gives patch tokens, ``pooler(tokens)`` the latent.

    The pooler is None where the method had none.

    Raises:
        DataError: If a file is missing, damaged, not finite, or does not fit the architecture in
            ``config.json``.
    """
    folder = Path(folder)
    encoder, pooler = untrained_encoder(folder)
    try:
        encoder.backbone.load_state_dict(load_file(folder / _ENCODER))
        if pooler is not None:
            pooler.load_state_dict(load_file(folder / _POOLER))
    except (SafetensorError, RuntimeError) as error:
        raise DataError(f"{folder}: damaged or not an exported encoder: {one_line(error)}") from error
    check_finite(f"encoder {folder}", _weights(encoder, pooler))
    return encoder, pooler


def _weights(encoder: Encoder, pooler: AttentivePooler | None) -> dict[str, Tensor]:
    return encoder.state_dict() | (pooler.state_dict() if pooler is not None else {})


def untrained_encoder(folder: str | Path) -> tuple[Encoder, AttentivePooler | None]:
    """The architecture of an exported encoder with random weights, in eval mode, to compare with.

    Raises:
        DataError: If a file is missing, or ``config.json`` is damaged.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / _CONFIG).read_text())
        for name in (_ENCODER, *([_POOLER] if "pooler" in description else [])):
            if not (folder / name).is_file():
                raise DataError(f"{folder}: not an exported encoder, {name} is missing")
        spec = {key: value for key, value in description["encoder"].items() if key != "pretrained"}
        encoder = encoders.build(spec)
        sizes = {key: description[key] for key in ("width", "embed_dim") if key in description}
        pooler = poolers.build(description["pooler"], **sizes) if "pooler" in description else None
    except FileNotFoundError as error:
        raise DataError(f"{folder}: not an exported encoder, {_CONFIG} is missing") from error
    except (LookupError, ValueError, TypeError) as error:
        raise DataError(f"{folder}: damaged or not an exported encoder: {one_line(error)}") from error
    return encoder.eval(), pooler.eval() if pooler is not None else None


def _save(module: nn.Module, path: Path) -> None:
    """Write a module's tensors, contiguous and on the CPU."""
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}, path
    )


def export_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    layout: str = "encoder",
    weights: Literal["trained", "ema"] = "trained",
) -> Path:
    """Export from a Composer checkpoint of a run folder.

    Args:
        checkpoint: ``runs/NAME/checkpoints/X.pt``, or wherever ``save_folder`` was.
        out: Folder to write.
        layout: ``encoder`` for :func:`export_encoder`, ``released`` for the whole model as one
            ``state_dict.safetensors`` in the layout of the authors' release.
        weights: ``trained``, or the average of the ``ema`` algorithm.

    Returns:
        The folder.

    Raises:
        ConfigError: If there is no such layout.
        DataError: If the checkpoint or its config cannot be read, or they do not fit each other.
    """
    from lcl_composer.checkpoint import read_begun, read_model_state
    from lcl_composer.models.released import to_released

    if layout not in ("encoder", "released"):
        raise ConfigError(f"export: no layout {layout!r}; use 'encoder' or 'released'")
    state = read_model_state(checkpoint, weights)
    check_finite(f"checkpoint {checkpoint}", state)
    if layout == "released":
        Path(out).mkdir(parents=True, exist_ok=True)
        released = {name: tensor.contiguous() for name, tensor in to_released(state).items()}
        save_file(released, Path(out) / "state_dict.safetensors")
        return Path(out)
    settings = read_begun(checkpoint).settings or _settings_beside(Path(checkpoint))
    model = ModelConfig.model_validate(settings["model"])
    return _write(*_image_side(model, state, checkpoint), model, Path(out))


def _settings_beside(checkpoint: Path) -> dict[str, Any]:
    """The config in the run folder of a checkpoint that was written before checkpoints held it."""
    path = checkpoint.resolve().parent.parent / "config.yaml"
    if not path.is_file():
        raise DataError(f"checkpoint {checkpoint}: no {path}; it must lie in runs/NAME/checkpoints/")
    return read_yaml(path).content


def _image_side(
    model: ModelConfig, state: dict[str, Tensor], checkpoint: str | Path
) -> tuple[Encoder, AttentivePooler | None]:
    """Encoder and, if there is one, pooler with the checkpoint's weights; no more of the run is built."""
    try:
        spec = {key: value for key, value in model.encoder.spec().items() if key != "pretrained"}
        encoder = encoders.build(spec)
        pooler = None
        if model.pooler is not None:
            language_model = model.language_model.spec() if model.language_model is not None else {}
            embed_dim = language_model.get("hidden_size", len(state["pooler.proj.weight"]))
            pooler = poolers.build(model.pooler.spec(), width=encoder.width, embed_dim=embed_dim)
        for name, part in (("encoder.", encoder), ("pooler.", pooler)):
            if part is not None:
                weights = {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}
                part.load_state_dict(weights)
    except (RuntimeError, LookupError) as error:
        raise DataError(
            f"checkpoint {checkpoint}: another architecture than its config: {one_line(error)}"
        ) from error
    return encoder, pooler
