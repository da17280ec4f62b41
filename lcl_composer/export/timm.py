"""timm's folder: ``timm.create_model("local-dir:FOLDER", pretrained=True)``; transformers reads it too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import split_model_name_tag

from lcl_composer.errors import ConfigError
from lcl_composer.export.same import check_pixels, check_same, some_pixels
from lcl_composer.export.taken import Taken
from lcl_composer.models.encoder import Encoder, TimmEncoder, patch_tokens_of_timm
from lcl_composer.models.open_clip_encoder import as_timm


@torch.no_grad()
def write_timm(taken: Taken, folder: Path) -> str:
    """Write the folder, read it by timm, compare; return how to use it.

    Raises:
        ConfigError: If the encoder is no model of timm.
    """
    encoder = as_timm(taken.encoder)
    if encoder is None:
        about = f"{type(taken.encoder).__name__} ({taken.encoder.source})"
        raise ConfigError(f"export: {about} is no model of timm; try --format hf or onnx")
    write_timm_folder(encoder, folder)
    pixels = some_pixels(encoder)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    check_same("timm", patch_tokens_of_timm(model, pixels), taken.encoder(pixels))
    transform: Any = create_transform(**resolve_model_data_config(model))
    check_pixels("timm", lambda image: transform(image)[None], encoder)
    return (
        "import timm\n\n"
        f'model = timm.create_model("local-dir:{folder}", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        "features = model.forward_features(transform(image)[None])"
    )


def write_timm_folder(encoder: TimmEncoder, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` as timm's ``save_for_hf`` lays them out.

    ``num_classes`` stands at the top alone: transformers' TimmWrapper gives it itself.
    """
    assert encoder.timm_args is not None, "it is of timm"
    arguments = {k: v for k, v in encoder.timm_args.items() if k not in ("model_name", "num_classes")}
    config = {
        "architecture": split_model_name_tag(encoder.timm_args["model_name"])[0],
        "num_classes": 0,
        "num_features": encoder.backbone.num_features,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": {**_layer_names(encoder), **preprocessing(encoder)},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {name: tensor.contiguous() for name, tensor in encoder.backbone.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def preprocessing(encoder: Encoder) -> dict[str, Any]:
    """How images are prepared, in timm's words."""
    side = encoder.image_size
    return {
        "num_classes": 0,
        "input_size": [3, side, side],
        "fixed_input_size": "img_size" in (encoder.timm_args or {}),
        "pool_size": None,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        **encoder.normalize.settings,
    }


def _layer_names(encoder: Encoder) -> dict[str, Any]:
    """Where timm finds the first layer and the classifier."""
    own = encoder.backbone.pretrained_cfg
    return {key: own[key] for key in ("first_conv", "classifier") if own.get(key)}
