"""CoCa's attentional pooler: any number of learned queries over the tokens of an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionalPooler(nn.Module):
    """One layer of multi-head attention with learned queries (CoCa, arXiv 2205.01917, section 3.2).

    Norms and biases are those of OpenCLIP's ``AttentionalPooler``.

    Args:
        num_queries: Queries n.
        width: Width W of the tokens.
        embed_dim: Width E of what comes out.
        num_heads: Attention heads; divides ``embed_dim``.
    """

    def __init__(self, num_queries: int, width: int, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.randn(num_queries, embed_dim))
        self.norm_q = nn.LayerNorm(embed_dim)
        self.norm_k = nn.LayerNorm(width)
        self.q = nn.Linear(embed_dim, embed_dim)
        self.k = nn.Linear(width, embed_dim)
        self.v = nn.Linear(width, embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[I, K, W] -> [I, n, E]."""
        keys_IKW = self.norm_k(tokens)
        query_nE = self.q(self.norm_q(self.query))  # once for all images
        query, key, value = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (query_nE.expand(len(tokens), -1, -1), self.k(keys_IKW), self.v(keys_IKW))
        )
        pooled_IHnd = F.scaled_dot_product_attention(query, key, value)
        return self.out(pooled_IHnd.transpose(1, 2).flatten(2))

    def flops(self, images: int, tokens: int) -> int:
        """Operations of a forward of images of so many tokens; the queries, once a batch, are left out."""
        queries, embed_dim = self.query.shape
        matrices = tokens * 2 * self.k.weight.numel() + queries * self.out.weight.numel()
        return images * (2 * matrices + 4 * queries * tokens * embed_dim)
