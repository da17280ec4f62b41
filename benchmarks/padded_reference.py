"""A padded model that computes what the authors' code computes, to measure our training step against.

Written from the released state dict's layout and DESIGN.md on OpenCLIP's own towers: every document is
padded to the context, the language model runs on padding and on image slots alike, all images are pooled
and projected, and the logits are materialised.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

from lcl_composer.data.interleave import TokenLayout
from lcl_composer.data.tokenizer import Tokenizer


class _CrossAttention(nn.Module):
    """Attention of given queries over keys and values, in the released names."""

    def __init__(self, width: int, embed_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        for name in "qkv":
            setattr(self, name, nn.Linear(width, embed_dim, bias=False))
            setattr(self, f"{name}_bias", nn.Parameter(torch.zeros(embed_dim)))
        self.proj = nn.Linear(embed_dim, embed_dim, bias=False)

    def project(self, x: Tensor, name: str) -> Tensor:
        """One of the three input projections: [I, K, W] -> [I, K, E]."""
        return F.linear(x, getattr(self, name).weight, getattr(self, f"{name}_bias"))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[I, 1, W], [I, K, W], [I, K, W] -> [I, 1, E]."""
        q, k, v = (
            self.project(x, n).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, n in ((q, "q"), (k, "k"), (v, "v"))
        )
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class _Pooler(nn.Module):
    """Norms and cross-attention under the released names."""

    def __init__(self, width: int, embed_dim: int, heads: int):
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = (nn.LayerNorm(width) for _ in range(3))
        self.cross_attn = _CrossAttention(width, embed_dim, heads)


class _PoolProject(nn.Module):
    """One query over the patch tokens, and the value path alone for the language model."""

    def __init__(self, width: int, embed_dim: int, heads: int):
        super().__init__()
        self.query_token = nn.Parameter(torch.randn(1, 1, width))
        self.pooler = _Pooler(width, embed_dim, heads)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens [I, K, W] -> latents [I, E] and language-model tokens [I, K, E]."""
        pooler, query = self.pooler, self.query_token.expand(len(x), -1, -1)
        pooled = pooler.cross_attn(pooler.norm1_q(query), pooler.norm1_k(x), pooler.norm1_v(x))
        values = pooler.cross_attn.project(pooler.norm1_v(x), "v")
        return pooled.squeeze(1), pooler.cross_attn.proj(values)


class PaddedLCL(nn.Module):
    """The released model of a ViT on OpenCLIP's towers; takes the released state dict.

    Args:
        image_size: Pixels a side.
        patch_size: Pixels a side of a patch.
        layers: Layers of the vision tower, and of the text tower unless that is said.
        width: Width of the vision tower; heads are 64 wide.
        embed_dim: Width of the text tower; heads are 64 wide.
        context: Tokens that every document is padded to.
        tokenizer: For the vocabulary size and the special tokens.
        text_layers: Layers of the text tower.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        layers: int,
        width: int,
        embed_dim: int,
        context: int,
        tokenizer: Tokenizer,
        text_layers: int | None = None,
    ):
        super().__init__()
        vocab_size, heads = tokenizer.vocab_size, embed_dim // 64
        self.tokenizer = tokenizer
        self.visual = VisionTransformer(
            image_size, patch_size, width, layers, width // 64, 4.0, output_dim=embed_dim
        )
        self.visual.proj = None
        self.text = TextTransformer(
            context, vocab_size, embed_dim, heads, text_layers or layers, output_dim=embed_dim
        )
        self.pool_project = _PoolProject(width, embed_dim, heads)
        self.lm_head = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, vocab_size, bias=False))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[I, 3, H, W] -> latents [I, E] and tokens [I, K, E]."""
        visual = self.visual
        x = visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
        x = visual.ln_post(visual.transformer(visual.ln_pre(x)))
        return self.pool_project(x[:, 1:])

    def forward(self, ids: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Contrastive and generation loss of padded ids [D, L] (0 is padding) and images [I, 3, H, W]."""
        latents, tokens = self.encode_image(pixels)
        slots = ids == self.tokenizer.image_placeholder
        words = self.text.token_embedding(ids)
        embeddings = words.masked_scatter(slots.unsqueeze(-1), tokens.to(words.dtype))
        outputs = self.text.transformer(
            embeddings + self.text.positional_embedding, attn_mask=self.text.attn_mask
        )
        return self._contrastive(latents, outputs, ids), self._generation(outputs, ids)

    def _contrastive(self, latents: Tensor, outputs: Tensor, ids: Tensor) -> Tensor:
        """Symmetric InfoNCE of every image but those at a document's start."""
        document, position = (ids == self.tokenizer.start_of_image).nonzero(as_tuple=True)
        used = position > 0
        contexts = self.text.ln_final(outputs[document[used], position[used]]) @ self.text.text_projection
        logits = self.logit_scale.exp() * F.normalize(latents[used], dim=-1) @ F.normalize(contexts, dim=-1).T
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def _generation(self, outputs: Tensor, ids: Tensor) -> Tensor:
        """Cross-entropy of the next token where that is text, an image's start or the end of the text."""
        next_ids = ids[:, 1:]
        predicted = (next_ids != 0) & (next_ids != self.tokenizer.image_placeholder)
        predicted &= next_ids != self.tokenizer.end_of_image
        return F.cross_entropy(self.lm_head(outputs[:, :-1][predicted]), next_ids[predicted])


def pad(layouts: list[TokenLayout], tokenizer: Tokenizer, tokens_per_image: int, context: int) -> Tensor:
    """Token ids [D, context] of whole documents, 0 behind them.

    A layout ends where no loss sees any more; what the released code runs behind that is put back.
    """
    ids = torch.zeros(len(layouts), context, dtype=torch.int64)
    for row, layout in zip(ids, layouts, strict=True):
        whole = layout.tokens.tolist()
        if layout.targets[-1] >= 0:
            whole.append(int(layout.targets[-1]))
        if whole[-1] == tokenizer.start_of_image:
            whole += [tokenizer.image_placeholder] * tokens_per_image + [tokenizer.end_of_image]
        row[: len(whole)] = torch.tensor(whole)
    return ids
