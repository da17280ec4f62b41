"""Cross-attention of a packed batch: tokens of the text to the patch tokens of one image each.

The tokens that attend to an image lie one after the other, so a batch falls into pieces, one an image, each
with its own queries and keys: no padding and no mask [T, I * K], linear in tokens. What runs is what runs in
``models/attention.py``: on CUDA SDPA over nested tensors, on the CPU SDPA a piece at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcl_composer.models.attention import Packing, nested_attention


@dataclass(frozen=True, eq=False)
class SeenImages:
    """The images that a packed batch attends to, and from where; made once a batch, used by every layer.

    Attributes:
        tokens: [R, K, W] patch tokens of the R images.
        spans: Tokens of the text that attend to each, each >= 1, summing to Q.
        rows: [Q] int64, where those lie in the flat sequence; None: they are all of it.
    """

    tokens: Tensor
    spans: list[int]
    rows: Tensor | None = None

    @classmethod
    def from_starts(cls, tokens: Tensor, starts: Tensor, spans: list[int]) -> SeenImages:
        """Each image seen by the ``spans`` tokens from its start on.

        Args:
            tokens: [R, K, W] patch tokens.
            starts: [R] int64, flat positions.
            spans: As above.
        """
        seen = cls(tokens, spans)
        before_R = seen.queries.offsets[:-1]
        # Its length is handed over, or torch would ask the device for it.
        shift_Q = (starts - before_R).repeat_interleave(seen.queries.offsets.diff(), output_size=sum(spans))
        return cls(tokens, spans, shift_Q + torch.arange(sum(spans), device=tokens.device))

    @cached_property
    def queries(self) -> Packing:
        """How the Q attending tokens fall into pieces."""
        return Packing(self.spans, self.tokens.device)

    @cached_property
    def keys(self) -> Packing:
        """How the R * K patch tokens do."""
        return Packing([self.tokens.shape[1]] * len(self.spans), self.tokens.device)


@torch.compiler.disable
def packed_cross_attention(
    query: Tensor, key: Tensor, value: Tensor, queries: Packing, keys: Packing
) -> Tensor:
    """Each query attends to the keys of its piece.

    Args:
        query: [1, H, Q, d].
        key: [1, H, S, d].
        value: [1, H, S, d].
        queries: How Q falls into pieces.
        keys: How S does, into as many.

    Returns:
        [1, Q, H, d]; where nothing attends it is empty and still depends on all inputs.
    """
    if not queries.lengths:
        return (query + 0.0 * (key.sum() + value.sum())).transpose(1, 2)
    scale = query.shape[-1] ** -0.5
    if query.is_cuda:
        return nested_attention(query, key, value, queries, scale, keys)
    pieces = zip(
        query.split(queries.lengths, 2), *(x.split(keys.lengths, 2) for x in (key, value)), strict=True
    )
    outputs = [F.scaled_dot_product_attention(q, k, v, scale=scale) for q, k, v in pieces]
    return torch.cat(outputs, dim=2).transpose(1, 2)


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to the patch tokens of one image each, with a norm of either side.

    Args:
        hidden_size: Width E of the tokens.
        key_width: Width W of the patch tokens.
        num_heads: Attention heads; divides ``hidden_size``.
        bias: Whether the matrices have biases.

    Raises:
        ValueError: If ``hidden_size`` is not a multiple of ``num_heads``.
    """

    def __init__(self, hidden_size: int, key_width: int, num_heads: int, bias: bool):
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(
                f"cross-attention: width {hidden_size} is not a multiple of num_heads {num_heads}"
            )
        self.num_heads = num_heads
        self.norm_q = nn.LayerNorm(hidden_size)
        self.norm_kv = nn.LayerNorm(key_width)
        self.q = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.k = nn.Linear(key_width, hidden_size, bias=bias)
        self.v = nn.Linear(key_width, hidden_size, bias=bias)
        self.out = nn.Linear(hidden_size, hidden_size, bias=bias)

    def forward(self, hidden: Tensor, images: SeenImages) -> Tensor:
        """[T, E] -> [T, E], to be added to its input: 0 for a token that sees no image."""
        rows_Q = images.rows
        seeing_QE = hidden if rows_Q is None else hidden.index_select(0, rows_Q)
        keys_SW = self.norm_kv(images.tokens).flatten(0, 1)
        query, key, value = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(0, 1).unsqueeze(0)
            for x in (self.q(self.norm_q(seeing_QE)), self.k(keys_SW), self.v(keys_SW))
        )
        attended_QHd = packed_cross_attention(query, key, value, images.queries, images.keys)[0]
        output_QE = self.out(attended_QHd.flatten(1))
        if rows_Q is None:
            return output_QE
        return output_QE.new_zeros(hidden.shape).index_copy(0, rows_Q, output_QE)

    def flops(self, spans: list[int], tokens_per_image: int) -> int:
        """Operations of a forward: matrices a query and a key, and all pairs of the two an image.

        Args:
            spans: Tokens that attend to each image.
            tokens_per_image: Patch tokens K of an image.
        """
        queries, keys = sum(spans), tokens_per_image * len(spans)
        matrices = queries * (self.q.weight.numel() + self.out.weight.numel())
        matrices += keys * (self.k.weight.numel() + self.v.weight.numel())
        return 2 * matrices + 4 * queries * tokens_per_image * self.q.out_features
