"""Our own folder, and the layout of the authors' release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lcl_composer.errors import ConfigError, DataError
from lcl_composer.export.encoder import write_encoder
from lcl_composer.export.same import check_same, some_pixels
from lcl_composer.export.taken import Taken
from lcl_composer.export.towers import as_batch, check_texts, padded, some_text, towers_config, whole_model
from lcl_composer.json_data import load_json
from lcl_composer.methods.method import Method
from lcl_composer.models.exported import load_encoder
from lcl_composer.models.open_clip_encoder import OpenCLIPEncoder
from lcl_composer.models.pooler import AttentivePooler
from lcl_composer.models.released import from_released, to_released

_STATE, _CONFIG = "state_dict.safetensors", "model_config.json"


@torch.no_grad()
def write_own(taken: Taken, folder: Path) -> str:
    """Write the folder that ``encoder: {name: exported}`` reads, and compare; return how to use it.

    Raises:
        DataError: If what is read back gives other pixels, features or latents.
    """
    write_encoder(taken.encoder, taken.pooler, taken.pooler_spec, folder)
    encoder, pooler = load_encoder(folder)
    pixels = some_pixels(taken.encoder)
    tokens_IKW = taken.encoder(pixels)
    check_same("load_encoder", encoder(pixels), tokens_IKW)
    levels = (64 * pixels + 128).clamp(0, 255).to(torch.uint8)
    check_same("load_encoder", encoder.normalize(levels), taken.encoder.normalize(levels), "pixels")
    if taken.pooler is not None:
        assert pooler is not None, "it was written"
        check_same("load_encoder", pooler(tokens_IKW), taken.pooler(tokens_IKW), "latents")
    return (
        "from lcl_composer.export import load_encoder\n\n"
        f'encoder, pooler = load_encoder("{folder}")\n'
        "tokens = encoder(pixel_values)  # [I, 3, H, W] uint8 -> [I, K, W]"
    )


@torch.no_grad()
def write_released(taken: Taken, folder: Path) -> str:
    """Write the whole model as the authors released theirs, with its model config; return how to use it.

    Raises:
        ConfigError: If the model is no timm CLIP ViT and OPT trained by ``lcl``, or one of another form.
        DataError: If what is read back gives other features, latents or logits.
    """
    if not taken.state:
        raise ConfigError(f"export: released holds the whole model, {taken.source} the encoder; name the run")
    if taken.method not in ("", "lcl"):
        raise ConfigError(f"export: the authors' layout is that of the method lcl, not of {taken.method}")
    if "logit_bias" in taken.state:
        raise ConfigError("export: the authors' layout has no bias of the contrast (contrastive: sigmoid)")
    try:
        state = {name: tensor.contiguous() for name, tensor in to_released(taken.state).items()}
    except DataError as error:
        raise ConfigError(f"export: {error}") from error
    ours = whole_model(taken)
    config = _model_config(ours, len(state["text.token_embedding.weight"]))
    save_file(state, folder / _STATE)
    (folder / _CONFIG).write_text(json.dumps(config, indent=4) + "\n")
    _check_read_back(ours, folder)
    return (
        "# In the authors' code, with the config among its model_configs:\n"
        "from safetensors.torch import load_file\n\n"
        f'model.load_state_dict(load_file("{folder / _STATE}"))'
    )


def _check_read_back(ours: Method, folder: Path) -> None:
    """Raise DataError unless the files give what the run's own method gives, part by part.

    OpenCLIP's ViT and text transformer are those of the authors' code, which is not here; the pooler is ours
    with what the files say.
    """
    from open_clip.transformer import QuickGELU, TextTransformer

    config, state = load_json((folder / _CONFIG).read_text()), load_file(folder / _STATE)
    tower = OpenCLIPEncoder(str(folder / _CONFIG), str(folder / _STATE)).eval()
    pixels = some_pixels(ours.encoder)
    tokens_IKW = ours.encoder(pixels)
    check_same("OpenCLIP's ViT", tower(pixels), tokens_IKW)
    sizes = {key: config["pool_project_cfg"][f"{key}put_dim"] for key in ("in", "out")}
    pooler = AttentivePooler(sizes["in"], sizes["out"], config["pool_project_cfg"]["attn_num_heads"])
    read = from_released(state)
    pooler.load_state_dict(_below("pooler.", read))
    check_same("the pooler", pooler(tokens_IKW), ours.image_features(pixels), "latents")
    act = QuickGELU if config.get("quick_gelu") else nn.GELU
    sizes = {**config["text_cfg"], "output_dim": config["embed_dim"], "act_layer": act}
    text: Any = TextTransformer(**sizes).eval()
    text.load_state_dict(_below("text.", state))
    check_texts(ours, text.vocab_size - 1, text.context_length, text)
    head = nn.Sequential(nn.LayerNorm(text.width), nn.Linear(text.width, text.vocab_size, bias=False))
    head.load_state_dict(_below("lm_head.", state))
    text.ln_final, text.text_projection, text.pool_type = nn.Identity(), None, "none"
    for ids in some_text(ours, text.vocab_size - 1):
        hidden_TE = ours.parts["language_model"].read(as_batch(ids))  # type: ignore[operator]
        logits_TV = ours.generation.logits(hidden_TE)  # type: ignore[union-attr]
        found_TV = head(text(padded(ids, text.context_length))[0, : len(ids)])
        check_same("OpenCLIP's text transformer", found_TV, logits_TV, "logits")


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def _model_config(ours: Method, vocab_size: int) -> dict[str, Any]:
    """In the form of the authors' ``model_configs/LCL_ViT-B-16_laion.json``."""
    towers = towers_config(ours, vocab_size)
    pooler: Any = ours.parts["pooler"]
    return {
        **towers,
        "pool_project_cfg": {
            "pool_proj_type": "attn",
            "input_dim": towers["vision_cfg"]["width"],
            "output_dim": towers["text_cfg"]["width"],
            "attn_num_heads": pooler.num_heads,
        },
        "custom_text": True,
    }
