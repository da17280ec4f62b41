"""Both towers of a run in OpenCLIP's words, and its text side held to OpenCLIP's text transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from lcl_composer.config.schema import ModelConfig
from lcl_composer.data.batch import IGNORE, PackedBatch
from lcl_composer.data.collate import collate, make_sample
from lcl_composer.data.interleave import TokenLayout
from lcl_composer.errors import ConfigError, DataError, one_line
from lcl_composer.export.same import check_same
from lcl_composer.export.taken import Taken
from lcl_composer.methods.method import Method
from lcl_composer.registry import language_models, methods

_DECODER = "language_model.backbone.decoder"
_EMBEDDING, _POSITIONS = f"{_DECODER}.embed_tokens.weight", f"{_DECODER}.embed_positions.weight"

#: Fields of an OPT's config that OpenCLIP's text transformer has no other value of.
_TEXT = {
    "_remove_final_layer_norm": True,
    "do_layer_norm_before": True,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
}
#: Activations of both towers: as transformers calls that of a text, as timm's class is called -> QuickGELU?
_TEXT_ACTIVATIONS = {"gelu": False, "quick_gelu": True}
_IMAGE_ACTIVATIONS = {"GELU": False, "GELUTorch": False, "QuickGELU": True}


def whole_model(taken: Taken) -> Method:
    """The run's method with the weights that were taken, in eval mode.

    Raises:
        ConfigError: If it cannot be built.
        DataError: If the weights are of another architecture than the run's config.
    """
    model, vocab_size = ModelConfig.model_validate(taken.settings["model"]), len(taken.state[_EMBEDDING])
    networks: dict[str, Any] = {"encoder": taken.encoder}
    if model.language_model is not None:
        networks["language_model"] = language_models.build(model.language_model.spec(), vocab_size=vocab_size)
    if taken.pooler is not None:
        networks["pooler"] = taken.pooler
    spec = taken.settings.get("method") or {"name": "lcl"}
    method = methods.build(spec, vocab_size=vocab_size, **networks)
    try:
        method.load_state_dict(taken.state, assign=True)
    except RuntimeError as error:
        raise DataError(f"{taken.source}: another architecture than its config: {one_line(error)}") from error
    return method.eval()


def towers_config(model: Method, vocab_size: int) -> dict[str, Any]:
    """OpenCLIP's model config of a timm CLIP ViT and an OPT by config, without what stands beside them.

    Args:
        model: The run's method.
        vocab_size: Rows of the text tower's embedding.

    Raises:
        ConfigError: If OpenCLIP has no such tower, or none with such an activation.
    """
    language_model: Any = model.parts["language_model"]
    config = language_model.backbone.config
    for field, value in _TEXT.items():
        if (found := getattr(config, field, False)) != value:
            raise _no_such(f"the text tower has {field} {found}, OpenCLIP's {value}")
    act = model.encoder.backbone.blocks[0].mlp.act
    kind = "approximate GELU" if getattr(act, "approximate", "none") != "none" else type(act).__name__
    quick, image = _TEXT_ACTIVATIONS.get(config.activation_function), _IMAGE_ACTIVATIONS.get(kind)
    if quick is None or quick != image:
        raise _no_such(
            f"the image tower has {kind}, the text tower {config.activation_function}; OpenCLIP "
            "has GELU in both, or QuickGELU in both (model_args: {act_layer: quick_gelu} of the encoder, "
            "{activation_function: quick_gelu} of the language model)"
        )
    text = _text_config(config, vocab_size)
    towers = {"embed_dim": text["width"], "vision_cfg": _vision_config(model), "text_cfg": text}
    return {**towers, "quick_gelu": True} if quick else towers


def _no_such(reason: str) -> ConfigError:
    return ConfigError(f"export: OpenCLIP has no such model: {reason}")


def _vision_config(model: Method) -> dict[str, Any]:
    """OpenCLIP's ``vision_cfg`` of a timm CLIP ViT."""
    vit = model.encoder.backbone
    block = vit.blocks[0]
    config = {
        "image_size": model.encoder.image_size,
        "layers": len(vit.blocks),
        "width": vit.embed_dim,
        "head_width": vit.embed_dim // block.attn.num_heads,
        "patch_size": vit.patch_embed.patch_size[0],
    }
    ratio = block.mlp.fc1.out_features / vit.embed_dim
    return config if ratio == 4 else {**config, "mlp_ratio": ratio}


def _text_config(config: Any, vocab_size: int) -> dict[str, Any]:
    """OpenCLIP's ``text_cfg`` of an OPT's config."""
    text = {
        "context_length": config.max_position_embeddings,
        "vocab_size": vocab_size,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "layers": config.num_hidden_layers,
    }
    ratio = config.ffn_dim / config.hidden_size
    return text if ratio == 4 else {**text, "mlp_ratio": ratio}


def some_text(model: Method, end: int) -> list[Tensor]:
    """Three texts of random ids [T] below ``end``, which they end in: a short one to one of all positions."""
    language_model: Any = model.parts["language_model"]
    generator = torch.Generator().manual_seed(0)
    most = language_model.max_position_embeddings
    lengths = sorted({min(3, most), -(-most // 2), most})
    return [
        torch.cat([torch.randint(0, end, (length - 1,), generator=generator), torch.tensor([end])])
        for length in lengths
    ]


def as_batch(text: Tensor) -> PackedBatch:
    """A text [T] whose last position stands for it, with an image of one pixel that nothing reads."""
    targets = np.full(len(text), IGNORE, dtype=np.int64)
    place = np.array([len(text) - 1])
    layout = TokenLayout(text.numpy(), targets, np.zeros(1, np.int64), np.array([-1]), place, 0, 0)
    return collate([make_sample("text", layout, torch.zeros(1, 3, 1, 1, dtype=torch.uint8))])


def padded(text: Tensor, context_length: int) -> Tensor:
    """A text [T] as OpenCLIP's tokenizer gives it, [1, context_length]."""
    return pad(text[None], (0, context_length - len(text)))


def check_texts(model: Method, end: int, context_length: int, theirs: Callable[[Tensor], Tensor]) -> None:
    """Hold a library's features of texts to the method's own.

    Args:
        model: The run's method.
        end: The id that texts end in, above all others of theirs.
        context_length: What texts are padded to.
        theirs: Ids [1, context_length] to a feature [1, E].

    Raises:
        DataError: If they differ.
    """
    for text in some_text(model, end):
        ours = model.text_features(as_batch(text))
        check_same("OpenCLIP", theirs(padded(text, context_length)), ours, "text features")
