"""Take the encoder away: a folder that loads without Composer, and the released layout of the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from safetensors.torch import save_file
from torch import Tensor, nn

from lcl_composer.config.schema import ModelConfig
from lcl_composer.config.yaml_file import read_yaml
from lcl_composer.errors import ConfigError, DataError, one_line
from lcl_composer.finite import check_finite
from lcl_composer.models.exported import (
    CONFIG_FILE,
    ENCODER_FILE,
    POOLER_FILE,
    image_side_weights,
    load_encoder,
    untrained_encoder,
)
from lcl_composer.registry import encoders, poolers

if TYPE_CHECKING:
    from lcl_composer.config.schema import RunConfig
    from lcl_composer.methods.method import Method
    from lcl_composer.models.encoder import Encoder
    from lcl_composer.models.pooler import AttentivePooler

__all__ = ["export_checkpoint", "export_encoder", "load_encoder", "untrained_encoder"]


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
    check_finite(f"export to {folder}", image_side_weights(encoder, pooler))
    folder.mkdir(parents=True, exist_ok=True)
    _save(encoder.backbone, folder / ENCODER_FILE)
    description = {
        "encoder": encoder.recipe,
        "timm": encoder.timm_args,
        "width": encoder.width,
        "tokens_per_image": encoder.tokens_per_image,
        **encoder.normalize.settings,
    }
    if pooler is not None and config.pooler is not None:
        _save(pooler, folder / POOLER_FILE)
        description |= {"pooler": config.pooler.spec(), "embed_dim": pooler.proj.out_features}
    (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n")
    return folder


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
    begun = read_begun(checkpoint)
    settings = begun.settings or _settings_beside(Path(checkpoint))
    model = ModelConfig.model_validate(settings["model"])
    recipe = begun.encoder.get("recipe") or model.encoder.spec() | {"pretrained": None}
    return _write(*_image_side(model, recipe, state, checkpoint), model, Path(out))


def _settings_beside(checkpoint: Path) -> dict[str, Any]:
    """The config in the run folder of a checkpoint that was written before checkpoints held it."""
    path = checkpoint.resolve().parent.parent / "config.yaml"
    if not path.is_file():
        raise DataError(f"checkpoint {checkpoint}: no {path}; it must lie in runs/NAME/checkpoints/")
    return read_yaml(path).content


def _image_side(
    model: ModelConfig, recipe: dict[str, Any], state: dict[str, Tensor], checkpoint: str | Path
) -> tuple[Encoder, AttentivePooler | None]:
    """Encoder and, if there is one, pooler with the checkpoint's weights; no more of the run is built."""
    try:
        encoder = encoders.build({key: value for key, value in recipe.items() if key != "pretrained"})
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
