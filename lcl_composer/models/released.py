"""The state dict layout of the authors' release, in and out.

Ours and theirs hold the same tensors under other names. Theirs fuses q, k and v of each language model
layer, stores the text projection transposed, and has neither OPT's two unused position rows nor timm's
leading axes of size 1.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from lcl_composer.errors import DataError

_ENCODER, _LM = "encoder.backbone", "language_model.backbone.decoder"
_POSITIONS, _PROJECTION = f"{_LM}.embed_positions.weight", "context_proj.weight"

#: Released name -> ours, for tensors that change their name and at most leading axes of size 1.
_NAMES = {
    "logit_scale": "logit_scale",
    "lm_head.0.weight": "generation_norm.weight",
    "lm_head.0.bias": "generation_norm.bias",
    "lm_head.1.weight": "generation_head.weight",
    "text.token_embedding.weight": f"{_LM}.embed_tokens.weight",
    "text.ln_final.weight": "context_norm.weight",
    "text.ln_final.bias": "context_norm.bias",
    "visual.class_embedding": f"{_ENCODER}.cls_token",
    "visual.positional_embedding": f"{_ENCODER}.pos_embed",
    "visual.conv1.weight": f"{_ENCODER}.patch_embed.proj.weight",
    "visual.ln_pre.weight": f"{_ENCODER}.norm_pre.weight",
    "visual.ln_pre.bias": f"{_ENCODER}.norm_pre.bias",
    "visual.ln_post.weight": f"{_ENCODER}.norm.weight",
    "visual.ln_post.bias": f"{_ENCODER}.norm.bias",
    "pool_project.query_token": "pooler.query",
    "pool_project.pooler.cross_attn.proj.weight": "pooler.proj.weight",
}
for _x in "qkv":
    _NAMES[f"pool_project.pooler.norm1_{_x}.weight"] = f"pooler.norm_{_x}.weight"
    _NAMES[f"pool_project.pooler.norm1_{_x}.bias"] = f"pooler.norm_{_x}.bias"
    _NAMES[f"pool_project.pooler.cross_attn.{_x}.weight"] = f"pooler.{_x}.weight"
    _NAMES[f"pool_project.pooler.cross_attn.{_x}_bias"] = f"pooler.{_x}.bias"

#: Module within a layer, released -> ours.
_VISION_LAYER = {
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj.": "attn.proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_TEXT_LAYER = {
    "ln_1.": "self_attn_layer_norm.",
    "ln_2.": "final_layer_norm.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "fc1.",
    "mlp.c_proj.": "fc2.",
}
#: Tensors whose leading axes of size 1 differ: released name -> (axes there, axes here).
_AXES = {
    "visual.class_embedding": (1, 3),
    "visual.positional_embedding": (2, 3),
    "pool_project.query_token": (3, 2),
}
_LAYER = re.compile(r"^(text|visual)\.transformer\.resblocks\.(\d+)\.(.+)(weight|bias)$")
_OUR_LAYER = re.compile(r"^(.+?)\.(?:blocks|layers)\.(\d+)\.(.+\.)(weight|bias)$")
_OUR_QKV = tuple(f"self_attn.{x}_proj." for x in "qkv")


def from_released(released: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a released state dict to ours.

    Raises:
        DataError: If a tensor has no counterpart.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in released.items():
        layer = _LAYER.match(name)
        if name in _NAMES:
            ours[_NAMES[name]] = _with_axes(tensor, _AXES[name][1]) if name in _AXES else tensor
        elif name == "text.positional_embedding":
            ours[_POSITIONS] = torch.cat([tensor.new_zeros(2, tensor.shape[1]), tensor])
        elif name == "text.text_projection":
            ours[_PROJECTION] = tensor.T.contiguous()
        elif layer and layer[1] == "text" and layer[3] == "attn.in_proj_":
            for part, chunk in zip(_OUR_QKV, tensor.chunk(3), strict=True):
                ours[f"{_LM}.layers.{layer[2]}.{part}{layer[4]}"] = chunk.contiguous()
        elif layer and layer[1] == "text" and layer[3] in _TEXT_LAYER:
            ours[f"{_LM}.layers.{layer[2]}.{_TEXT_LAYER[layer[3]]}{layer[4]}"] = tensor
        elif layer and layer[1] == "visual" and layer[3] in _VISION_LAYER:
            ours[f"{_ENCODER}.blocks.{layer[2]}.{_VISION_LAYER[layer[3]]}{layer[4]}"] = tensor
        else:
            raise DataError(
                f"released state dict: no counterpart for {name!r}; is it a checkpoint of the authors' LCL?"
            )
    return ours


def to_released(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our state dict to the released layout; the inverse of :func:`from_released`.

    Raises:
        DataError: If the model has another architecture than the release (a timm CLIP ViT and an OPT).
    """
    names = {new: old for old, new in _NAMES.items()}
    released: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        layer = _OUR_LAYER.match(name)
        if name in names:
            old = names[name]
            released[old] = _with_axes(tensor, _AXES[old][0]) if old in _AXES else tensor
        elif name == _POSITIONS:
            released["text.positional_embedding"] = tensor[2:].contiguous()
        elif name == _PROJECTION:
            released["text.text_projection"] = tensor.T.contiguous()
        elif layer and layer[3] in _OUR_QKV:
            if layer[3] == _OUR_QKV[0]:
                parts = [ours[name.replace(_OUR_QKV[0], part)] for part in _OUR_QKV]
                released[f"text.transformer.resblocks.{layer[2]}.attn.in_proj_{layer[4]}"] = torch.cat(parts)
        elif layer and _released_layer(layer[1], layer[3]):
            side, part = _released_layer(layer[1], layer[3]) or ("", "")
            released[f"{side}.transformer.resblocks.{layer[2]}.{part}{layer[4]}"] = tensor
        else:
            raise DataError(
                f"released layout: no counterpart for {name!r}; it needs a timm CLIP ViT and an OPT"
            )
    return released


def _released_layer(prefix: str, part: str) -> tuple[str, str] | None:
    """Side (text or visual) and released name of a module within one of our layers."""
    side, table = ("visual", _VISION_LAYER) if prefix == _ENCODER else ("text", _TEXT_LAYER)
    return next(((side, old) for old, new in table.items() if new == part), None)


def _with_axes(tensor: Tensor, axes: int) -> Tensor:
    """The tensor with as many axes, leading ones of size 1 added or taken away."""
    while tensor.dim() < axes:
        tensor = tensor.unsqueeze(0)
    while tensor.dim() > axes:
        tensor = tensor.squeeze(0)
    return tensor
