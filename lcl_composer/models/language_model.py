"""Causal language models from transformers, run on packed embeddings without padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.tokenizer import SPECIAL_TOKENS
from lcl_composer.errors import ConfigError, did_you_mean, one_line
from lcl_composer.models.attention import PACKED, Packing, check_heads, check_sizes

#: OPT in this form has exactly the layout of the released LCL text tower.
_RELEASED_OPT = {"_remove_final_layer_norm": True, "activation_function": "gelu"}

#: What is off unless ``model_args`` says otherwise, under the names that the architectures give it. A padding
#: index (OPT's is 1) would silently drop the gradient of that token: nothing is padded here.
_OFF: dict[str, Any] = {
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "pad_token_id": None,
}


class TransformersLM(nn.Module):
    """A decoder-only model of transformers, from its config or from pretrained weights.

    Args:
        vocab_size: Size of the tokenizer's vocabulary (given by the build, not by YAML).
        model_type: transformers' name of the architecture: ``opt``, ``gpt2``, ``llama``, ``qwen2``, ...
        hidden_size: Width E.
        num_hidden_layers: Layers.
        num_attention_heads: Attention heads.
        max_position_embeddings: Longest document in tokens.
        pretrained: A hub name or a folder to take architecture and weights from; its vocabulary is resized
            to ``vocab_size``, new tokens drawn around the mean of the old (Hewitt 2021). The other sizes must
            then agree with it, and ``model_type`` is not read.
        model_args: Further fields of the architecture's config, such as ``{num_key_value_heads: 2}``. Every
            dropout is 0 unless set here; attention dropout must stay 0.

    Raises:
        ConfigError: If transformers knows no such architecture or field, the architecture cannot run packed,
            or the pretrained sizes differ.
    """

    def __init__(
        self,
        vocab_size: int,
        model_type: str = "opt",
        hidden_size: int = 512,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 8,
        max_position_embeddings: int = 128,
        pretrained: str | None = None,
        model_args: dict[str, Any] | None = None,
    ):
        super().__init__()
        sizes = {
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "max_position_embeddings": max_position_embeddings,
        }
        self._output_embedding: Tensor | None = None
        if pretrained:
            self.backbone, self._output_embedding = _from_pretrained(
                pretrained, vocab_size, sizes, model_args or {}
            )
        else:
            self.backbone = _from_config(model_type, vocab_size, sizes, model_args or {})
        self.hidden_size, self.max_position_embeddings = hidden_size, max_position_embeddings

    @property
    def has_final_norm(self) -> bool:
        """Whether the output is normalised already; OPT by config is not, as in the released code."""
        return not getattr(self.backbone.config, "_remove_final_layer_norm", False)

    def take_output_embedding(self) -> Tensor | None:
        """The pretrained output layer [V, E], for a head to start from; given once. None from scratch."""
        weight, self._output_embedding = self._output_embedding, None
        return weight

    def embed(
        self, tokens: Tensor, image_tokens: Tensor | None = None, slots: Tensor | None = None
    ) -> Tensor:
        """Token embeddings, [T] int64 -> [T, E], with image tokens [S, E] at the positions ``slots`` [S]."""
        embeddings_TE = self.backbone.get_input_embeddings()(tokens)
        if image_tokens is None or slots is None:
            return embeddings_TE
        return embeddings_TE.index_copy(0, slots, image_tokens.to(embeddings_TE.dtype))

    def insert_before(self, blocks: Mapping[int, nn.Module]) -> None:
        """Put blocks between the layers; they stay modules of their owner, and names of weights as they were.

        Args:
            blocks: The number of a layer, from 0, to what runs before it: ``(hidden [T, E], images)`` to the
                hidden states [T, E] that the layer gets.
        """
        layers = self.backbone.config.num_hidden_layers
        stack = next(m for m in self.backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == layers)
        for number, block in blocks.items():
            stack[number].register_forward_pre_hook(_Before(block), with_kwargs=True)

    def read(
        self,
        batch: PackedBatch,
        image_tokens: Tensor | None = None,
        slots: Tensor | None = None,
        images: Any = None,
        causal: bool = True,
    ) -> Tensor:
        """Outputs for a packed batch, image tokens put into their slots.

        Args:
            batch: Its tokens, positions and documents are read.
            image_tokens: [S, E], None where the text stands alone.
            slots: [S] int64, their flat positions.
            images: What blocks between the layers get.
            causal: A position sees what stands before it; else all of its document.

        Returns:
            [T, E]; of a batch without a token one blank row, which keeps every parameter in the graph.
        """
        tokens, positions = batch["tokens"], batch["positions"]
        lengths = [n for n in batch["lengths"] if n]
        if not lengths:
            tokens, positions, lengths = tokens.new_zeros(1), positions.new_zeros(1), [1]
        return self(self.embed(tokens, image_tokens, slots), positions, lengths, images, causal)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        lengths: list[int],
        images: Any = None,
        causal: bool = True,
    ) -> Tensor:
        """Outputs of the last layer for a packed sequence.

        Args:
            embeddings: [T, E], documents one after the other.
            positions: [T] int64, restarting at 0 in each document.
            lengths: Tokens of each document, each >= 1, summing to T.
            images: What blocks between the layers get.
            causal: A position sees what stands before it; else all of its document.

        Returns:
            [T, E]; position t has seen the tokens of its own document, up to t where attention is causal.
        """
        # A 4-d mask is handed through untouched by transformers, which would else build a [T, T] one.
        unused_mask = embeddings.new_zeros(1, 1, 1, 1)
        output = self.backbone(
            inputs_embeds=embeddings.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            attention_mask=unused_mask,
            use_cache=False,
            packing=Packing(lengths, embeddings.device, causal),
            images=images,
        )
        return output.last_hidden_state[0]


class _Before:
    """A block before a layer, as the layer's hook: run with it, also when activations are recomputed."""

    def __init__(self, block: nn.Module):
        self.block = block

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden_1TE, *rest = args
        return (self.block(hidden_1TE[0], kwargs["images"]).unsqueeze(0), *rest), kwargs


def _from_config(model_type: str, vocab_size: int, sizes: dict[str, int], model_args: dict[str, Any]) -> Any:
    """A model with random weights; raises ConfigError for unknown architectures and fields."""
    try:
        known = AutoConfig.for_model(model_type).to_dict()
    except ValueError as error:
        raise ConfigError(
            f"model.language_model.model_type: transformers has no {model_type!r}; try opt, gpt2 or llama"
        ) from error
    fields = {**_OFF, **sizes, "vocab_size": vocab_size, "intermediate_size": 4 * sizes["hidden_size"]}
    if model_type == "opt":
        fields |= {"word_embed_proj_dim": sizes["hidden_size"], "ffn_dim": 4 * sizes["hidden_size"]}
        fields |= _RELEASED_OPT
    if "num_key_value_heads" in known:  # Qwen2's default is 32, whatever the number of heads
        fields["num_key_value_heads"] = sizes["num_attention_heads"]
    _check_model_args(model_type, known, {*sizes, "vocab_size"}, model_args)
    check_sizes(sizes)
    try:
        config = AutoConfig.for_model(model_type, **{**fields, **model_args})
        # As AutoModel does, which imports the configs of all architectures to see whether this is one.
        architecture: Any = MODEL_MAPPING.get(type(config), None)
        if not getattr(architecture, "_supports_attention_backend", False):  # Funnel has two models
            raise _cannot_run_packed(model_type)
        check_heads(config)
        model = architecture._from_config(config, attn_implementation=PACKED)
    except ConfigError:
        raise
    except Exception as error:  # each architecture refuses in its own way
        raise ConfigError(
            f"model.language_model: transformers cannot build {model_type!r} so: {one_line(error)}"
        ) from error
    _zero_unused_positions(model)
    return model


def _check_model_args(
    model_type: str, known: dict[str, Any], set_elsewhere: set[str], model_args: dict[str, Any]
) -> None:
    """Raise ConfigError for a field that the architecture lacks, or that has a key of its own."""
    if twice := sorted(set_elsewhere & set(model_args)):
        raise ConfigError(
            f"model.language_model.model_args: {', '.join(twice)} is set by model.language_model itself "
            "or by the tokenizer; take it out of model_args"
        )
    for name in sorted(set(model_args) - set(known) - set(_RELEASED_OPT)):
        raise ConfigError(
            f"model.language_model.model_args: {model_type} has no field {name!r}; "
            + did_you_mean(name, set(known) - set_elsewhere)
        )


def _cannot_run_packed(model_type: str) -> ConfigError:
    return ConfigError(
        f"model.language_model: transformers' {model_type!r} takes no attention function from outside and "
        "cannot run packed; try opt, gpt2 or llama"
    )


def _from_pretrained(
    name: str, vocab_size: int, sizes: dict[str, int], model_args: dict[str, Any]
) -> tuple[Any, Tensor]:
    """A pretrained model and its output layer [V, E], resized; raises ConfigError where sizes disagree."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.language_model.pretrained: cannot load {name!r}: {one_line(error)}"
        ) from error
    if vocab_size - len(SPECIAL_TOKENS) > config.vocab_size:
        raise ConfigError(
            f"model.language_model: {name!r} has {config.vocab_size} token ids and the tokenizer "
            f"{vocab_size}, more than its structural tokens explain; they do not belong together"
        )
    known = config.to_dict()
    differing = [
        f"{k}={v} (weights: {getattr(config, k)})" for k, v in sizes.items() if getattr(config, k) != v
    ]
    if differing:
        raise ConfigError(
            f"model.language_model: {name!r} disagrees with {', '.join(differing)}; set them alike"
        )
    _check_model_args(config.model_type, known, {*sizes, "vocab_size"}, model_args)
    for field, value in {**{k: v for k, v in _OFF.items() if k in known}, **model_args}.items():
        setattr(config, field, value)
    on_meta = torch.empty(0).is_meta  # no memory to put weights into
    try:
        if on_meta:
            model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                name, config=config, attn_implementation=PACKED, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"model.language_model.pretrained: cannot load {name!r}: {one_line(error)}"
        ) from error
    if not model._supports_attention_backend:
        raise _cannot_run_packed(config.model_type)
    model.resize_token_embeddings(vocab_size, mean_resizing=not on_meta)
    return model.base_model, model.get_output_embeddings().weight.detach()


def _zero_unused_positions(model: Any) -> None:
    """OPT's table has two rows in front that no position reads: zero, as in the released layout."""
    offset = getattr(getattr(model, "decoder", None), "embed_positions", None)
    if offset is not None and getattr(offset, "offset", 0):
        with torch.no_grad():
            offset.weight[: offset.offset].zero_()
