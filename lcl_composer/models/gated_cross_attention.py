"""Flamingo's block between the layers of a language model: cross-attention and feed-forward behind gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcl_composer.models.cross_attention import CrossAttention, SeenImages
from lcl_composer.models.feed_forward import FeedForward
from lcl_composer.models.sharding import local


def squared_relu(x: Tensor) -> Tensor:
    """The square of ReLU (Primer, arXiv 2109.08668), Flamingo's activation."""
    return F.relu(x).square()


class GatedCrossAttention(nn.Module):
    """GATED XATTN-DENSE (Flamingo, arXiv 2204.14198, figure 4).

    ``y = y + tanh(a) * attention(y, x)``, then ``y = y + tanh(b) * ffw(y)``. Both gates begin at 0, so that
    the language model begins as what it would be without images; neither block nor encoder has a gradient
    then, until the first step has moved the gates.

    Args:
        hidden_size: Width E of the language model.
        key_width: Width W of the patch tokens.
        num_heads: Attention heads.
    """

    def __init__(self, hidden_size: int, key_width: int, num_heads: int):
        super().__init__()
        self.attention = CrossAttention(hidden_size, key_width, num_heads, bias=False)
        self.feed_forward = FeedForward(hidden_size, squared_relu, bias=False)
        self.attention_gate = nn.Parameter(torch.tensor(0.0))
        self.feed_forward_gate = nn.Parameter(torch.tensor(0.0))

    def forward(self, hidden: Tensor, images: SeenImages) -> Tensor:
        """Hidden states [T, E] before the block to those after it."""
        hidden = hidden + local(self.attention_gate).tanh() * self.attention(hidden, images)
        return hidden + local(self.feed_forward_gate).tanh() * self.feed_forward(hidden)

    def flops(self, tokens: int, spans: list[int], tokens_per_image: int) -> int:
        """Operations of a forward of this many tokens; the rest as for :class:`CrossAttention`."""
        return self.attention.flops(spans, tokens_per_image) + self.feed_forward.flops(tokens)
