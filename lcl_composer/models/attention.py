"""Causal attention inside the documents of a packed batch, plugged into transformers' models.

transformers looks its attention up by name in ``AttentionInterface``; ours is ``packed_causal``. It takes
one flat sequence [1, heads, T, head_dim] and how it is packed, and never attends across documents: a batch
needs no padding and no [T, T] mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers.modeling_utils import AttentionInterface

from lcl_composer.errors import ConfigError

#: Name under which the attention is registered with transformers.
PACKED_CAUSAL = "packed_causal"


@dataclass(frozen=True)
class Packing:
    """How documents lie in a flat sequence; made once a batch, used by every layer.

    Attributes:
        lengths: Tokens of each document, each >= 1, summing to T.
        block_mask: The causal document mask of flex attention, None where SDPA runs a document at a time.
    """

    lengths: list[int]
    block_mask: BlockMask | None = None

    @classmethod
    def of(cls, lengths: list[int], device: torch.device, use_flex: bool | None = None) -> Packing:
        """Packing of documents of these lengths; flex attention on CUDA unless told otherwise."""
        if not (device.type == "cuda" if use_flex is None else use_flex):
            return cls(lengths)
        document_T = torch.repeat_interleave(torch.tensor(lengths, device=device))

        def same_document_and_past(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (document_T[query] == document_T[key])

        length = len(document_T)
        mask = create_block_mask(same_document_and_past, None, None, length, length, device=str(device))
        return cls(lengths, mask)


@cache
def _compiled_flex_attention() -> Any:
    """Flex attention as one Triton kernel; uncompiled it would form the scores."""
    return torch.compile(flex_attention, dynamic=True)


def _attend(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
    """Attention within documents: [1, H, T, d] -> [1, T, H, d]."""
    if packing.block_mask is not None:
        attend: Any = _compiled_flex_attention() if query.is_cuda else flex_attention
        output = attend(query, key, value, block_mask=packing.block_mask, scale=scale)
        return output.transpose(1, 2).contiguous()
    # CPU has no variable-length kernel: SDPA a document at a time is the fastest there.
    lengths = packing.lengths
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    outputs = [F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale) for q, k, v in parts]
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1)


def packed_causal_attention(
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
        sliding_window: Mistral's window; no document may be longer.
        softcap: Gemma 2's cap on the scores; must be None.

    Returns:
        [1, T, H, d] and no weights.

    Raises:
        ConfigError: If the language model asks for what the packed kernels lack, or did not hand the packing
            through.
    """
    where = "model.language_model.model_args"
    if dropout:
        raise ConfigError(f"{where}: packed attention has no dropout; leave attention dropout at 0")
    if packing is None:
        raise ConfigError(f"{type(module).__name__} lost the packing: this language model cannot run packed")
    if softcap is not None:
        raise ConfigError(f"{where}: packed attention has no softcap; set attn_logit_softcapping to null")
    if sliding_window is not None and sliding_window < max(packing.lengths):
        raise ConfigError(
            f"{where}: a document of {max(packing.lengths)} tokens is longer than sliding_window = "
            f"{sliding_window}, and packed attention has no window; raise it or set it to null"
        )
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _attend(query, key, value, packing, scale), None


AttentionInterface.register(PACKED_CAUSAL, packed_causal_attention)
