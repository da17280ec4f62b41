"""The folder that a run writes at its end, which this package, and for a timm encoder timm, reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors.torch import save_file
from torch import nn

from lcl_composer.models.exported import CONFIG_FILE, ENCODER_FILE, POOLER_FILE, image_side_weights
from lcl_composer.models.finite import check_finite

if TYPE_CHECKING:
    from lcl_composer.config.schema import RunConfig
    from lcl_composer.methods.method import Method
    from lcl_composer.models.encoder import Encoder
    from lcl_composer.models.pooler import AttentivePooler


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
    spec = config.model.pooler.spec() if config.model.pooler is not None else None
    return write_encoder(model.encoder, pooler, spec, Path(folder))


def write_encoder(
    encoder: Encoder, pooler: AttentivePooler | None, pooler_spec: dict[str, Any] | None, folder: Path
) -> Path:
    """Write the folder that :func:`lcl_composer.models.exported.load_encoder` reads.

    Args:
        encoder: With its weights.
        pooler: None where there is none.
        pooler_spec: What builds it again.
        folder: Created if absent.

    Returns:
        The folder.

    Raises:
        DataError: If a weight is not finite.
    """
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
    if pooler is not None and pooler_spec is not None:
        _save(pooler, folder / POOLER_FILE)
        description |= {"pooler": pooler_spec, "embed_dim": pooler.proj.out_features}
    (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n")
    return folder


def _save(module: nn.Module, path: Path) -> None:
    """Write a module's tensors, contiguous and on the CPU."""
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}, path
    )
