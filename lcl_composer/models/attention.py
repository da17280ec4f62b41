"""Attention inside the documents of a packed batch, causal or both ways, plugged into transformers' models.

transformers looks its attention up by name in ``AttentionInterface``; ours is ``packed``. It takes
one flat sequence [1, heads, T, head_dim] and how it is packed, and never attends across documents: a batch
needs no padding and no [T, T] mask. What runs, all linear in T:

* on CUDA, SDPA over nested tensors: FlashAttention's variable-length kernel in half precision, the
  memory-efficient one in float32;
* on CUDA with a sliding window or a softcap, which those lack, flex attention;
* on the CPU, which has neither, SDPA a document at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers.modeling_utils import AttentionInterface

from lcl_composer.errors import ConfigError
from lcl_composer.models.block_mask import packed_block_mask, to_device

#: Name under which the attention is registered with transformers.
PACKED = "packed"

#: Smallest head that flex attention's kernel multiplies, and what a head of nested SDPA is a multiple of.
_FLEX_HEAD, _NESTED_HEAD = 16, 8

#: SDPA's kernels of variable length: another is refused, never fallen back to.
_VARIABLE_LENGTH = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


@dataclass(frozen=True, eq=False)
class Packing:
    """How documents lie in a flat sequence; made once a batch, used by every layer.

    Attributes:
        lengths: Tokens of each document, each >= 1, summing to T.
        device: Where the queries are.
        causal: A query sees the keys up to its own position; else all of its document.
    """

    lengths: list[int]
    device: torch.device
    causal: bool = True
    _masks: dict[int | None, BlockMask] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def offsets(self) -> Tensor:
        """Where each document begins, and T: [D + 1] int64, on the device."""
        lengths = torch.tensor(self.lengths, dtype=torch.int64)
        return to_device(F.pad(lengths.cumsum(0), (1, 0)), self.device)

    @cached_property
    def documents(self) -> Tensor:
        """[T] int32, the number of each position's document, on the device."""
        numbers = torch.arange(len(self.lengths), dtype=torch.int32)
        return to_device(numbers.repeat_interleave(torch.tensor(self.lengths)), self.device)

    def block_mask(self, window: int | None) -> BlockMask:
        """Flex attention's mask, where a query sees ``window`` keys at most; made once for all layers."""
        if window not in self._masks:
            self._masks[window] = packed_block_mask(self.lengths, self.documents, window)
        return self._masks[window]


def check_heads(config: Any) -> None:
    """Refuse sizes of a language model that cannot be cut into heads.

    Args:
        config: Of transformers; heads of some architectures have a width of their own, ``head_dim``.

    Raises:
        ConfigError: Names both keys.
    """
    key = "model.language_model"
    width, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or width // heads
    if width % heads and head_dim == width // heads:
        raise ConfigError(
            f"{key}.hidden_size: {width} is no multiple of {key}.num_attention_heads, {heads}; change one"
        )
    shared = getattr(config, "num_key_value_heads", None) or heads
    if heads % shared:
        raise ConfigError(
            f"{key}.num_attention_heads: {heads} is no multiple of num_key_value_heads, {shared}, in "
            f"{key}.model_args; change one"
        )
    if head_dim % 2 and (hasattr(config, "rope_theta") or hasattr(config, "rope_parameters")):
        raise ConfigError(
            f"{key}.hidden_size: {width} over {key}.num_attention_heads, {heads}, is odd, and rotary "
            "positions turn pairs of numbers; change one"
        )


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Refuse a size of a language model that is below 1; raises ConfigError."""
    if small := [name for name, size in sizes.items() if size < 1]:
        raise ConfigError(f"model.language_model.{small[0]}: is {sizes[small[0]]}, must be at least 1")


@cache
def _compiled_flex_attention() -> Any:
    """Flex attention as one Triton kernel for any T.

    Uncompiled it forms all scores: ``fullgraph`` makes torch raise where it would fall back to that.
    """
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def nested_attention(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, keys: Packing | None = None
) -> Tensor:
    """SDPA over nested tensors, by SDPA's kernels of variable length: [1, H, T, d] -> [1, T, H, d].

    Args:
        query: [1, H, T, d].
        key: [1, H, T, d], or [1, H, S, d] with a packing of their own.
        value: As the keys.
        packing: How the documents lie in T.
        scale: Factor on the scores.
        keys: How the keys lie in S: piece n of the queries attends to all of piece n. None: they lie as the
            queries do, and attention is causal where ``packing`` says so.
    """
    width = query.shape[-1]

    def nested(x: Tensor, packing: Packing) -> Tensor:
        flat_THd = F.pad(x, (0, -width % _NESTED_HEAD)).squeeze(0).transpose(0, 1)
        # Lengths are handed over, or torch would ask the device for them.
        shortest, longest = min(packing.lengths), max(packing.lengths)
        pieces = torch.nested.nested_tensor_from_jagged(
            flat_THd, packing.offsets, min_seqlen=shortest, max_seqlen=longest
        )
        return pieces.transpose(1, 2)

    key, value = (nested(x, keys or packing) for x in (key, value))
    with sdpa_kernel(_VARIABLE_LENGTH):
        output = F.scaled_dot_product_attention(
            nested(query, packing), key, value, is_causal=keys is None and packing.causal, scale=scale
        )
    return output.transpose(1, 2).values()[..., :width].unsqueeze(0)


def _softcap(cap: float) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Gemma 2's cap on the scores, as flex attention asks for it."""

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


def _flex_packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Flex attention with a window or a softcap: [1, H, T, d] -> [1, T, H, d]."""

    width = value.shape[-1]
    query, key, value = (F.pad(x, (0, max(0, _FLEX_HEAD - x.shape[-1]))) for x in (query, key, value))
    output = _compiled_flex_attention()(
        query,
        key,
        value,
        score_mod=None if softcap is None else _softcap(softcap),
        block_mask=packing.block_mask(window),
        scale=scale,
    )
    return output[..., :width].transpose(1, 2).contiguous()


def _document_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One document [1, H, L, d] on the CPU."""
    if window is None and softcap is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale)
    scores = query @ key.transpose(-1, -2) * scale
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    position = torch.arange(query.shape[2], device=query.device)
    age = position[:, None] - position
    seen = (age >= 0) & (age < (len(position) if window is None else window))
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention within documents by what the device has: [1, H, T, d] -> [1, T, H, d]."""
    if not query.is_cuda:
        parts = zip(*(x.split(packing.lengths, 2) for x in (query, key, value)), strict=True)
        outputs = [_document_attention(q, k, v, packing.causal, scale, window, softcap) for q, k, v in parts]
        return torch.cat([output.transpose(1, 2) for output in outputs], dim=1)
    if window is None and softcap is None:
        return nested_attention(query, key, value, packing, scale)
    return _flex_packed_attention(query, key, value, packing, scale, window, softcap)


@torch.compiler.disable
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention function in the signature that transformers calls.

    Args:
        module: The attention layer; its ``num_key_value_groups``, if any, repeats keys and values.
        query: [1, H, T, d].
        key: [1, H or fewer, T, d].
        value: [1, H or fewer, T, d].
        attention_mask: Unused; the packing says everything.
        dropout: Must be 0; the packed kernels have none.
        scaling: Factor on the scores, ``d ** -0.5`` when None.
        packing: How the documents lie in T.
        sliding_window: Keys that a query sees at most, its own included (Mistral).
        softcap: Scores become ``softcap * tanh(score / softcap)`` (Gemma 2).

    Returns:
        [1, T, H, d] and no weights.

    Raises:
        ConfigError: If the language model asks for dropout, for a window or a softcap where attention goes
            both ways, or did not hand the packing through.
    """
    if dropout:
        raise ConfigError(
            "model.language_model.model_args: packed attention has no dropout; leave attention dropout at 0"
        )
    if packing is None:
        raise ConfigError(f"{type(module).__name__} lost the packing: this language model cannot run packed")
    if sliding_window is not None and sliding_window >= max(packing.lengths):
        sliding_window = None
    if not packing.causal and (sliding_window or softcap):
        raise ConfigError(
            "model.language_model: this method attends both ways, which goes without a sliding window and "
            "without a softcap; use opt, gpt2 or llama"
        )
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    # Under autocast rotary embeddings leave queries and keys in float32; the kernels want one type.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _attend(query, key, value, packing, scale, sliding_window, softcap), None


AttentionInterface.register(PACKED, packed_attention)
