"""Learned queries that read an image's patch tokens: the Q-Former of BLIP-2 without its text."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


class QueryTransformer(nn.Module):
    """Q learned queries, each layer self-attention, cross-attention to the patch tokens, and an MLP.

    BLIP-2 (arXiv 2301.12597, section 3.1); there every second layer attends to the image. The layers are
    torch's, normalised before (pre-norm); a linear map brings patch tokens to the queries' width.

    Args:
        width: Width W of the encoder's patch tokens.
        embed_dim: Width E of the queries.
        num_queries: Queries Q an image.
        num_layers: Layers.
        num_heads: Attention heads; divides ``embed_dim``.

    Raises:
        ValueError: If a size is below 1, or ``embed_dim`` is not a multiple of ``num_heads``.
    """

    def __init__(self, width: int, embed_dim: int, num_queries: int, num_layers: int, num_heads: int):
        super().__init__()
        if min(num_queries, num_layers, num_heads) < 1 or embed_dim % num_heads:
            raise ValueError(
                f"num_queries {num_queries}, query_layers {num_layers} and query_heads {num_heads} must be "
                f"at least 1, and the language model's hidden_size {embed_dim} a multiple of query_heads"
            )
        self.queries = nn.Parameter(0.02 * torch.randn(num_queries, embed_dim))
        self.memory = nn.Linear(width, embed_dim)
        form: Any = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(embed_dim, num_heads, 4 * embed_dim, **form) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """What the queries read from patch tokens: [I, K, W] -> [I, Q, E]."""
        memory_IKE = self.memory(tokens)
        queries_IQE = self.queries.expand(len(tokens), -1, -1)
        for layer in self.layers:
            queries_IQE = layer(queries_IQE, memory_IKE)
        return self.norm(queries_IQE)

    def flops(self, tokens: int) -> int:
        """Operations of an image's forward, its K patch tokens given by number."""
        queries, width = self.queries.shape
        layer = cast(nn.TransformerDecoderLayer, self.layers[0])
        matrices = 4 * width**2 + 2 * width**2 + 2 * width * layer.linear1.out_features  # a query
        keys = 2 * width**2  # a patch token
        scores = 2 * width * (queries + tokens)  # a query: products with keys and with values
        a_layer = queries * (matrices + scores) + tokens * keys
        return 2 * (tokens * self.memory.weight.numel() + len(self.layers) * a_layer)
