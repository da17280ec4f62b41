"""Attentive pooler: one query for the contrastive latent, the same value path for the LM's image tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentivePooler(nn.Module):
    """Cross-attention of one learned query over the patch tokens (LCL, section 3.3 and the released code).

    The latent that enters L_con is ``proj(softmax(q k / sqrt(d)) v)``; the tokens that enter the language
    model are ``proj(v)``, without attention. Both share ``norm_v``, ``v`` and ``proj``, so that what the
    contrastive loss aligns is what the language model reads.

    Args:
        width: Width W of the encoder's patch tokens.
        embed_dim: Width E of the latent, equal to the language model's hidden size.
        num_heads: Attention heads; divides ``embed_dim``.

    Raises:
        ValueError: If ``embed_dim`` is not a multiple of ``num_heads``.
    """

    def __init__(self, width: int, embed_dim: int, num_heads: int = 8):
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"pooler: embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.randn(1, width))
        self.norm_q = nn.LayerNorm(width)
        self.norm_k = nn.LayerNorm(width)
        self.norm_v = nn.LayerNorm(width)
        self.q = nn.Linear(width, embed_dim)
        self.k = nn.Linear(width, embed_dim)
        self.v = nn.Linear(width, embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim, bias=False)

    def freeze_latent(self) -> None:
        """Freeze what only the latent depends on, where no loss reads it: DDP stops at such a parameter."""
        self.query.requires_grad_(False)
        for part in (self.norm_q, self.norm_k, self.q, self.k):
            part.requires_grad_(False)

    def values(self, tokens: Tensor) -> Tensor:
        """Value vectors of patch tokens: [I, K, W] -> [I, K, E]."""
        return self.v(self.norm_v(tokens))

    def attention(self, tokens: Tensor) -> Tensor:
        """Weights of the query over patch tokens: [I, K, W] -> [I, heads, K], each row sums to 1.

        There is one query for all images, so q^T W_k is folded into a [W, heads] matrix and the keys are
        never formed. The term q . b_k is the same for every key and cancels in the softmax; it is kept so
        that every parameter stays in the graph (DDP).
        """
        heads, head_dim = self.num_heads, self.q.out_features // self.num_heads
        q_HD = self.q(self.norm_q(self.query)).view(heads, head_dim) * head_dim**-0.5
        key_HDW = self.k.weight.view(heads, head_dim, -1)
        folded_WH = torch.einsum("hd,hdw->wh", q_HD, key_HDW)
        bias_H = (q_HD * self.k.bias.view(heads, head_dim)).sum(-1)
        scores_IKH = self.norm_k(tokens) @ folded_WH + bias_H
        return scores_IKH.transpose(1, 2).softmax(-1)

    def pool(self, tokens: Tensor, values: Tensor) -> Tensor:
        """Latent of each image from its tokens [I, K, W] and their values [I, K, E]: [I, E]."""
        weights_IHK = self.attention(tokens)
        values_IHKD = values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        pooled_IHD = (weights_IHK.unsqueeze(2) @ values_IHKD).squeeze(2)
        return self.proj(pooled_IHD.flatten(1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Pooled, unnormalised latent of each image: [I, K, W] -> [I, E]."""
        return self.pool(tokens, self.values(tokens))
