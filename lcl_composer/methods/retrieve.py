"""Image-text retrieval: an attention probe on an encoder's patch tokens against a text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.interleave import Layout, LayoutRules
from lcl_composer.data.paired import Paired
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.methods.contrast import Contrast, ContrastiveLoss
from lcl_composer.methods.method import Method, Outputs, Term
from lcl_composer.models.block_mask import to_device
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.flops import language_model_flops, pooler_flops
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.pooler import AttentivePooler
from lcl_composer.models.text_encoder import TextEncoder


class Retrieve(Method):
    """Image-text retrieval by frozen transfer, or full (LCL, arXiv 2406.07543, table 1).

    The attention probe (``model.pooler``) makes one feature of an image's patch tokens,
    ``model.language_model`` one of a text; symmetric InfoNCE over the global batch draws those of a pair
    together. With ``algorithms: {layer_freezing: {parts: [encoder]}}`` the encoder is frozen, which is LiT
    (arXiv 2111.07991) with the probe between; with ``language_model`` among the parts only the probe and the
    projection are trained. The text's feature is normalised and projected as OpenCLIP does.

    Documents are an image and its captions, as ``lcl convert coco``, ``flickr30k`` or ``captions`` make them;
    of several captions one is drawn each epoch. ``evaluation.caption_retrieval`` measures on all of them.

    Args:
        encoder: Pixels to patch tokens.
        pooler: The attention probe.
        language_model: A causal language model, or a ``text_encoder`` that attends both ways.
        text_pooling: What stands for a text: the output at its ``end``, at its ``start``, or the ``mean``
            over its tokens, as sentence-transformers have it.
        logit_scale_init: Inverse temperature at the start; it is learned.
        logit_scale_max: The inverse temperature is clamped here.
        contrastive: ``info_nce``, or ``sigmoid`` (SigLIP's, with a learnable bias from -10).
        backend: Implementation of the fused loss; null: triton on CUDA, torch elsewhere.
    """

    def __init__(
        self,
        encoder: Encoder,
        pooler: AttentivePooler,
        language_model: TransformersLM | TextEncoder,
        text_pooling: Literal["end", "start", "mean"] = "end",
        logit_scale_init: float = 1 / 0.07,
        logit_scale_max: float = 100.0,
        contrastive: ContrastiveLoss = "info_nce",
        backend: Literal["torch", "triton"] | None = None,
    ):
        super().__init__()
        width = language_model.hidden_size
        contrast = Contrast(self, contrastive, logit_scale_init, logit_scale_max, backend)
        self.encoder, self.pooler, self.language_model = encoder, pooler, language_model
        self.text_pooling = text_pooling
        self.text_norm = nn.LayerNorm(width)
        self.text_proj = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.text_proj.weight, std=width**-0.5)  # as OpenCLIP's text_projection
        self.terms = {"contrastive": Term(1.0, "pairs", ("image_features", "text_features"), contrast)}

    @classmethod
    def contrasts(cls, settings: Mapping[str, Any]) -> bool:
        """Always."""
        return True

    def layout(self, tokenizer: Tokenizer, rules: LayoutRules) -> Layout:
        """One of the texts, and the image beside it."""
        return Paired(tokenizer, rules)

    def forward(self, batch: PackedBatch) -> Outputs:
        """Run the packed batch.

        Returns:
            ``image_features`` [P, E] and ``text_features`` [P, E] of the P pairs, not normalised.
        """
        image_PE = self.pooler(self.patch_tokens(batch))
        return {"image_features": image_PE, "text_features": self.text_features(batch)}

    def text_features(self, batch: PackedBatch) -> Tensor:
        """Features [P, E] of the texts of P pairs, not normalised."""
        return self.text_proj(self.text_norm(self._pooled(batch, self.language_model.read(batch))))

    def _pooled(self, batch: PackedBatch, outputs_TE: Tensor) -> Tensor:
        """What stands for each text, [P, E]."""
        if self.text_pooling == "end":
            return outputs_TE.index_select(0, batch["anchors"])
        lengths_P = torch.tensor([length for length in batch["lengths"] if length], dtype=torch.int64)
        if self.text_pooling == "start":
            starts_P = to_device(lengths_P.cumsum(0) - lengths_P, outputs_TE.device)
            return outputs_TE.index_select(0, starts_P)
        if not len(lengths_P):
            return outputs_TE[:0]
        lengths_P = to_device(lengths_P, outputs_TE.device)
        return torch.segment_reduce(outputs_TE.float(), "mean", lengths=lengths_P, unsafe=True)

    def forward_flops(self, batch: PackedBatch) -> dict[str, int]:
        """Operations by part; the head is the projection of a text."""
        causal = not isinstance(self.language_model, TextEncoder)
        return {
            **super().forward_flops(batch),
            "pooler": pooler_flops(self.pooler, self.encoder.tokens_per_image, batch),
            "language_model": language_model_flops(self.language_model, batch["lengths"], causal),
            "heads": 2 * len(batch["anchors"]) * self.text_proj.weight.numel(),
        }
