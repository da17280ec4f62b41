"""Text encoders that attend both ways (BERT, RoBERTa), from config or pretrained, without padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModel

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.tokenizer import SPECIAL_TOKENS
from lcl_composer.errors import ConfigError, did_you_mean, one_line
from lcl_composer.models.attention import Packing, check_heads, check_sizes, packed_attention

#: What is off unless ``model_args`` says otherwise, under the names that the architectures give it.
_OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_OFF |= {"dropout": 0.0, "attention_dropout": 0.0}  # DistilBERT's

_KEY = "model.language_model"


class TextEncoder(nn.Module):
    """An encoder of transformers that reads all of a text at each of its tokens.

    It stands where the causal language model stands in a method that only wants features of texts
    (``retrieve``). Texts are packed one after the other: where the architecture calls torch's
    ``scaled_dot_product_attention``, each text attends to itself alone, by the kernels of
    ``models/attention.py``. An architecture that does not, or that biases its attention by distance, is
    refused.

    Args:
        vocab_size: Size of the tokenizer's vocabulary (given by the build, not by YAML).
        model_type: transformers' name of the architecture: ``bert``, ``roberta``, ``xlm-roberta``. With
            ``pretrained`` it is not read.
        hidden_size: Width E; null: that of the weights.
        num_hidden_layers: Layers; null: as the weights.
        num_attention_heads: Attention heads; null: as the weights.
        max_position_embeddings: Longest text in tokens; null: as the weights.
        pretrained: A hub name or a folder to take architecture and weights from; its vocabulary is resized to
            ``vocab_size``.
        model_args: Further fields of the architecture's config. Every dropout is 0 unless set here; attention
            dropout must stay 0.

    Raises:
        ConfigError: If transformers knows no such architecture or field, it cannot run packed, a size is
            missing, or the pretrained sizes differ.
    """

    #: The final layer ends in a norm.
    has_final_norm = True

    def __init__(
        self,
        vocab_size: int,
        model_type: str = "bert",
        hidden_size: int | None = None,
        num_hidden_layers: int | None = None,
        num_attention_heads: int | None = None,
        max_position_embeddings: int | None = None,
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
        config, build = _config(model_type, sizes, pretrained, model_args or {}, vocab_size)
        _check_packed(config)
        self.backbone = build()
        self.hidden_size: int = config.hidden_size
        self.max_position_embeddings = config.max_position_embeddings - _first_position(self.backbone)

    def read(self, batch: PackedBatch) -> Tensor:
        """Outputs [T, E] for a packed batch; of one without a token one blank row, which keeps the graph."""
        tokens, positions = batch["tokens"], batch["positions"]
        lengths = [n for n in batch["lengths"] if n]
        if not lengths:
            tokens, positions, lengths = tokens.new_zeros(1), positions.new_zeros(1), [1]
        return self(tokens, positions, lengths)

    def forward(self, tokens: Tensor, positions: Tensor, lengths: list[int]) -> Tensor:
        """Outputs of the last layer for a packed sequence.

        Args:
            tokens: [T] int64, texts one after the other.
            positions: [T] int64, restarting at 0 in each text.
            lengths: Tokens of each text, each >= 1, summing to T.

        Returns:
            [T, E].
        """
        return _run_packed(self.backbone, tokens, positions, lengths)[0]


def _config(
    model_type: str,
    sizes: dict[str, int | None],
    pretrained: str | None,
    model_args: dict[str, Any],
    vocab_size: int,
) -> tuple[Any, Callable[[], Any]]:
    """The config, and what builds the backbone; see :class:`TextEncoder` for the errors."""
    where = f"{_KEY}.pretrained" if pretrained else f"{_KEY}.model_type"
    try:
        if pretrained:
            config = AutoConfig.from_pretrained(pretrained, trust_remote_code=False)
        else:
            config = AutoConfig.for_model(model_type)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: cannot load {pretrained or model_type!r}: {one_line(error)}") from error
    known = config.to_dict()
    for name in sorted(set(model_args) - set(known)):
        raise ConfigError(
            f"{_KEY}.model_args: {config.model_type} has no field {name!r}; {did_you_mean(name, known)}"
        )
    _set_sizes(config, sizes, pretrained)
    off = {key: value for key, value in _OFF.items() if key in known}
    for field, value in {**off, **model_args}.items():
        setattr(config, field, value)
    if not pretrained:
        config.vocab_size = vocab_size
        config.pad_token_id = None  # a padding index would drop the gradient of its token
        return config, lambda: _bare(AutoModel.from_config(config, attn_implementation="sdpa"))
    if vocab_size - len(SPECIAL_TOKENS) > config.vocab_size:
        raise ConfigError(
            f"{_KEY}: {pretrained!r} has {config.vocab_size} token ids and the tokenizer {vocab_size}, more "
            "than its structural tokens explain; they do not belong together"
        )
    return config, lambda: _load(pretrained, config, vocab_size)


def _set_sizes(config: Any, sizes: dict[str, int | None], pretrained: str | None) -> None:
    """Write the sizes into a config from scratch, or hold them against a pretrained one's."""
    if pretrained:
        given = {key: value for key, value in sizes.items() if value is not None}
        if wrong := [
            f"{k}={v} (weights: {getattr(config, k)})" for k, v in given.items() if getattr(config, k) != v
        ]:
            raise ConfigError(f"{_KEY}: {pretrained!r} disagrees with {', '.join(wrong)}; set them alike")
        return
    if missing := [key for key, value in sizes.items() if value is None]:
        raise ConfigError(f"{_KEY}.{missing[0]}: missing; without pretrained the text encoder needs it")
    check_sizes({key: value for key, value in sizes.items() if value is not None})
    for key, value in sizes.items():
        setattr(config, key, value)
    check_heads(config)
    inner = "hidden_dim" if config.model_type == "distilbert" else "intermediate_size"
    setattr(config, inner, 4 * config.hidden_size)


def _load(name: str, config: Any, vocab_size: int) -> Any:
    on_meta = torch.empty(0).is_meta  # no memory to put weights into
    try:
        if on_meta:
            model = AutoModel.from_config(config, attn_implementation="sdpa")
        else:
            model = AutoModel.from_pretrained(
                name, config=config, attn_implementation="sdpa", trust_remote_code=False
            )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{_KEY}.pretrained: cannot load {name!r}: {one_line(error)}") from error
    model.resize_token_embeddings(vocab_size, mean_resizing=not on_meta)
    return _bare(model)


def _bare(model: Any) -> Any:
    """The model without its pooler, whose parameters no loss would read."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def _first_position(backbone: Any) -> int:
    """The row of the position table that the first token reads; RoBERTa keeps those before for padding."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def _check_packed(config: Any) -> None:
    """Run two texts through a twin of the backbone on the meta device.

    Raises:
        ConfigError: If a layer attends by other means than torch's function, or with a bias of its own.
    """
    tokens = torch.zeros(5, dtype=torch.int64, device="meta")
    try:
        with torch.device("meta"):
            twin = _bare(AutoModel.from_config(config, attn_implementation="sdpa"))
        _, calls = _run_packed(twin, tokens, tokens, [2, 3])
    except ConfigError:
        raise
    except Exception as error:  # each architecture refuses in its own way
        raise _cannot_run_packed(config.model_type, one_line(error)) from error
    if calls != config.num_hidden_layers:
        raise _cannot_run_packed(config.model_type, "not every layer calls scaled_dot_product_attention")


def _cannot_run_packed(model_type: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{_KEY}: transformers' {model_type!r} cannot run packed ({reason}); try bert, roberta or xlm-roberta"
    )


def _run_packed(backbone: Any, tokens: Tensor, positions: Tensor, lengths: list[int]) -> tuple[Tensor, int]:
    """Outputs [T, E] of the backbone, and how often it attended."""
    attention = _PackedAttention(Packing(lengths, tokens.device, causal=False), backbone.config.model_type)
    kinds = {}
    if getattr(backbone.config, "type_vocab_size", 0):
        kinds["token_type_ids"] = torch.zeros_like(tokens)[None]
    # A mask of no effect, in the form that is handed through without a look at its values: a look would wait
    # for the device. Newer versions take four axes, older ones three.
    axes = 4 if getattr(backbone, "_supports_attention_backend", False) else 3
    mask = torch.ones([1] * axes, device=tokens.device)
    with attention:
        output = backbone(
            input_ids=tokens[None],
            position_ids=positions[None] + _first_position(backbone),
            attention_mask=mask,
            **kinds,
        )
    return output.last_hidden_state[0], attention.calls


class _PackedAttention(TorchFunctionMode):
    """While it is entered, torch's attention goes no further than a text.

    Args:
        packing: How texts lie in the sequence.
        model_type: For messages.
    """

    def __init__(self, packing: Packing, model_type: str):
        super().__init__()
        self.packing, self.model_type, self.calls = packing, model_type, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.calls += 1
        return self._attend(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> Tensor:
        """[1, H, T, d] -> [1, H, T, d]."""
        if is_causal:
            raise _cannot_run_packed(self.model_type, "it attends to what stands before only")
        if attn_mask is not None and (
            attn_mask.shape[-2] != 1 or attn_mask.shape[-1] not in (1, query.shape[2])
        ):
            raise _cannot_run_packed(self.model_type, "its attention has a bias or a window")
        attended_1THd = packed_attention(
            nn.Identity(), query, key, value, None, dropout_p, scale, self.packing
        )[0]
        return attended_1THd.transpose(1, 2)
