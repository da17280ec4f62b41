"""CoCa's multimodal decoder: causal self-attention over text, cross-attention to one image a document."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcl_composer.models.attention import Packing, packed_attention
from lcl_composer.models.cross_attention import CrossAttention, SeenImages
from lcl_composer.models.feed_forward import FeedForward


class SelfAttention(nn.Module):
    """Causal multi-head attention inside the documents of a packed batch, with its norm.

    Args:
        hidden_size: Width E.
        num_heads: Attention heads.
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor, packing: Packing) -> Tensor:
        """[T, E] -> [T, E], to be added to its input."""
        query, key, value = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(0, 1).unsqueeze(0)
            for x in self.qkv(self.norm(hidden)).chunk(3, -1)
        )
        attended_1THd, _ = packed_attention(self, query, key, value, None, packing=packing)
        return self.out(attended_1THd[0].flatten(1))

    def flops(self, lengths: list[int]) -> int:
        """Operations of a forward of documents of these lengths: matrices a token, causal pairs."""
        pairs = sum(length * (length + 1) // 2 for length in lengths)
        matrices = self.qkv.weight.numel() + self.out.weight.numel()
        return 2 * sum(lengths) * matrices + 4 * pairs * self.out.in_features


class MultimodalLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each added to its input.

    Args:
        hidden_size: Width E of text and image tokens.
        num_heads: Attention heads.
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.self_attention = SelfAttention(hidden_size, num_heads)
        self.cross_attention = CrossAttention(hidden_size, hidden_size, num_heads, bias=True)
        self.feed_forward = FeedForward(hidden_size, F.gelu, bias=True)

    def forward(self, hidden: Tensor, packing: Packing, images: SeenImages) -> Tensor:
        """[T, E] -> [T, E]."""
        hidden = hidden + self.self_attention(hidden, packing)
        hidden = hidden + self.cross_attention(hidden, images)
        return hidden + self.feed_forward(hidden)

    def flops(self, lengths: list[int], tokens_per_image: int) -> int:
        """Operations of a forward of documents of these lengths, each with an image of so many tokens."""
        flops = self.self_attention.flops(lengths) + self.cross_attention.flops(lengths, tokens_per_image)
        return flops + self.feed_forward.flops(sum(lengths))


class MultimodalDecoder(nn.Module):
    """The layers above the unimodal text decoder (CoCa, arXiv 2205.01917, section 3.2).

    A layer has one feed-forward, not one after each attention as in OpenCLIP: so the 12 + 12 layers of
    CoCa-Base have the 297M parameters of the paper's table 1. There is no norm at the end.

    Args:
        hidden_size: Width E of text and image tokens.
        num_layers: Layers.
        num_heads: Attention heads.
    """

    has_final_norm = False

    def __init__(self, hidden_size: int, num_layers: int, num_heads: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.layers = nn.ModuleList(MultimodalLayer(hidden_size, num_heads) for _ in range(num_layers))

    def forward(self, hidden: Tensor, lengths: list[int], images: Tensor) -> Tensor:
        """Outputs for a packed batch of documents with one image each.

        Args:
            hidden: [T, E], documents one after the other.
            lengths: Tokens of each of the D documents, each >= 1, summing to T.
            images: [D, K, E] tokens of their images.

        Returns:
            [T, E]; position t has seen its document up to t, and its image. Without a document a blank token
            runs and is dropped: it keeps every parameter in the graph.
        """
        if not lengths:
            nowhere = torch.zeros(0, dtype=torch.int64, device=hidden.device)
            blank = torch.cat([hidden, hidden.new_zeros(1, self.hidden_size)])
            return self._run(blank, Packing([1], hidden.device), SeenImages(images, [], nowhere))[:0]
        packing = Packing(lengths, hidden.device)
        return self._run(hidden, packing, SeenImages(images, lengths))

    def _run(self, hidden: Tensor, packing: Packing, images: SeenImages) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, packing, images)
        return hidden

    def flops(self, lengths: list[int], tokens_per_image: int) -> int:
        """Operations of a forward; as for a layer."""
        layer: MultimodalLayer = self.layers[0]  # type: ignore[assignment]
        return len(self.layers) * layer.flops(lengths, tokens_per_image)
