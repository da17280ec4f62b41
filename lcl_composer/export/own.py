"""Our own folder, and the layout of the authors' release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lcl_composer.errors import ConfigError, DataError
from lcl_composer.export.encoder import write_encoder
from lcl_composer.export.same import check_same, some_pixels
from lcl_composer.export.taken import Taken
from lcl_composer.models.exported import load_encoder
from lcl_composer.models.open_clip_encoder import OpenCLIPEncoder
from lcl_composer.models.released import to_released

_STATE, _CONFIG = "state_dict.safetensors", "model_config.json"


@torch.no_grad()
def write_own(taken: Taken, folder: Path) -> str:
    """Write the folder that ``encoder: {name: exported}`` reads; return how to use it."""
    write_encoder(taken.encoder, taken.pooler, taken.pooler_spec, folder)
    pixels = some_pixels(taken.encoder)
    check_same("load_encoder", load_encoder(folder)[0](pixels), taken.encoder(pixels))
    return (
        "from lcl_composer.export import load_encoder\n\n"
        f'encoder, pooler = load_encoder("{folder}")\n'
        "tokens = encoder(pixel_values)  # [I, 3, H, W] uint8 -> [I, K, W]"
    )


@torch.no_grad()
def write_released(taken: Taken, folder: Path) -> str:
    """Write the whole model as the authors released theirs, with its model config; return how to use it.

    Raises:
        ConfigError: If the model is no timm CLIP ViT and OPT trained by ``lcl``.
    """
    if not taken.state:
        raise ConfigError(f"export: released holds the whole model, {taken.source} the encoder; name the run")
    if taken.method not in ("", "lcl"):
        raise ConfigError(f"export: the authors' layout is that of the method lcl, not of {taken.method}")
    try:
        state = {name: tensor.contiguous() for name, tensor in to_released(taken.state).items()}
    except DataError as error:
        raise ConfigError(f"export: {error}") from error
    save_file(state, folder / _STATE)
    (folder / _CONFIG).write_text(json.dumps(_model_config(taken), indent=4) + "\n")
    tower = OpenCLIPEncoder(str(folder / _CONFIG), str(folder / _STATE)).eval()
    pixels = some_pixels(taken.encoder)
    check_same("OpenCLIP's ViT", tower(pixels), taken.encoder(pixels))
    return (
        "# In the authors' code, with the config among its model_configs:\n"
        "from safetensors.torch import load_file\n\n"
        f'model.load_state_dict(load_file("{folder / _STATE}"))'
    )


def vision_config(taken: Taken) -> dict[str, Any]:
    """OpenCLIP's ``vision_cfg`` of a timm CLIP ViT."""
    vit = taken.encoder.backbone
    block = vit.blocks[0]
    config = {
        "image_size": taken.encoder.image_size,
        "layers": len(vit.blocks),
        "width": vit.embed_dim,
        "head_width": vit.embed_dim // block.attn.num_heads,
        "patch_size": vit.patch_embed.patch_size[0],
    }
    ratio = block.mlp.fc1.out_features / vit.embed_dim
    return config if ratio == 4 else {**config, "mlp_ratio": ratio}


def text_config(taken: Taken, vocab_size: int) -> dict[str, Any]:
    """OpenCLIP's ``text_cfg`` of an OPT by config."""
    language_model = taken.settings["model"]["language_model"]
    layers = {
        name.split(".")[4]
        for name in taken.state
        if name.startswith("language_model.backbone.decoder.layers.")
    }
    positions, width = taken.state["language_model.backbone.decoder.embed_positions.weight"].shape
    return {
        "context_length": positions - 2,
        "vocab_size": vocab_size,
        "width": width,
        "heads": language_model.get("num_attention_heads", 8),
        "layers": len(layers),
    }


def _model_config(taken: Taken) -> dict[str, Any]:
    """In the form of the authors' ``model_configs/LCL_ViT-B-16_laion.json``."""
    vocab_size = len(taken.state["language_model.backbone.decoder.embed_tokens.weight"])
    text, vision = text_config(taken, vocab_size), vision_config(taken)
    pooler: Any = taken.pooler
    return {
        "embed_dim": text["width"],
        "vision_cfg": vision,
        "text_cfg": text,
        "pool_project_cfg": {
            "pool_proj_type": "attn",
            "input_dim": vision["width"],
            "output_dim": text["width"],
            "attn_num_heads": pooler.num_heads,
        },
        "custom_text": True,
    }
