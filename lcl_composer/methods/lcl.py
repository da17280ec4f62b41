"""Latent Compression Learning: images to latents, interleaved with text, through a causal language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from lcl_composer.data.batch import PackedBatch, without_pairs
from lcl_composer.data.interleave import Interleaved, Layout, LayoutRules, Readers
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.methods.contrast import Contrast, ContrastiveLoss
from lcl_composer.methods.generation import Generation
from lcl_composer.methods.method import Method, Outputs, Term
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.flops import language_model_flops, pooler_flops
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.pooler import AttentivePooler


class LCL(Method):
    """Latent Compression Learning (arXiv 2406.07543, figure 2 and equation 8).

    ``L = contrastive_weight * L_con + generation_weight * L_gen``: symmetric InfoNCE between an image's
    pooled latent and the language model's output at its ``<start_of_img>``, which has seen what precedes the
    image; and next-token prediction of the text.

    Args:
        encoder: Pixels to patch tokens.
        pooler: Patch tokens to the latent and to the language model's image tokens.
        language_model: Causal LM over text embeddings and image tokens.
        vocab_size: Rows V of the generation head.
        contrastive_weight: Weight of L_con; at 0 neither it nor what it alone reads is computed.
        generation_weight: Weight of L_gen; the same.
        logit_scale_init: Inverse temperature at the start; it is learned.
        logit_scale_max: The inverse temperature is clamped here.
        contrastive: ``info_nce`` (the paper's), or ``sigmoid`` (SigLIP's, with a learnable bias from -10).
        backend: Implementation of the fused losses; null: triton on CUDA, torch elsewhere.
    """

    def __init__(
        self,
        encoder: Encoder,
        pooler: AttentivePooler,
        language_model: TransformersLM,
        vocab_size: int,
        contrastive_weight: float = 0.1,
        generation_weight: float = 1.0,
        logit_scale_init: float = 1 / 0.07,
        logit_scale_max: float = 100.0,
        contrastive: ContrastiveLoss = "info_nce",
        backend: Literal["torch", "triton"] | None = None,
    ):
        super().__init__()
        width = language_model.hidden_size
        self.encoder = encoder
        self.pooler = pooler
        self.language_model = language_model
        self.context_norm = nn.LayerNorm(width)
        self.context_proj = nn.Linear(width, width, bias=False)
        self.generation = Generation(self, language_model, vocab_size, backend)
        nn.init.normal_(self.context_proj.weight, std=width**-0.5)  # as OpenCLIP's text_projection
        contrast = Contrast(self, contrastive, logit_scale_init, logit_scale_max, backend)
        sides = ("image_features", "context_features")
        self.terms = {
            "contrastive": Term(contrastive_weight, "pairs", sides, contrast),
            "generation": self.generation.term(generation_weight),
        }

    @classmethod
    def contrasts(cls, settings: Mapping[str, Any]) -> bool:
        """Where L_con has a weight."""
        return settings["contrastive_weight"] > 0

    def layout(self, tokenizer: Tokenizer, rules: LayoutRules) -> Layout:
        """The layout of the released code: images as tokens in their places."""
        return Interleaved(tokenizer, rules, Readers(generation=self.terms["generation"].weight > 0))

    def _seen(self, batch: PackedBatch) -> PackedBatch:
        """What a loss or an evaluation reads of a batch: without L_con neither pairs nor unread images."""
        return batch if self.needs("contrastive") else without_pairs(batch)

    def forward(self, batch: PackedBatch) -> Outputs:
        """Run the packed batch.

        Returns:
            ``image_features`` [P, E] pooled latents of the P anchored images; ``context_features`` [P, E] LM
            outputs at their ``<start_of_img>`` after norm and projection; ``hidden`` [N, E] LM outputs at the
            N positions that predict, after norm; ``targets`` [N] int64. Features are not normalised. In
            training P is 0 while L_con has no weight.
        """
        batch = self._seen(batch)
        latents_PE, image_tokens_SE, slots = self._images(batch)
        outputs_TE = self.language_model.read(batch, image_tokens_SE, slots)
        return {
            "image_features": latents_PE,
            "context_features": self._contexts(batch, outputs_TE),
            **self.generation.outputs(batch, outputs_TE),
        }

    def _contexts(self, batch: PackedBatch, outputs_TE: Tensor) -> Tensor:
        """Features [P, E] of what stands before the P anchored images."""
        contexts = batch["anchors"].index_select(0, batch["paired"])
        return self.context_proj(self.context_norm(outputs_TE.index_select(0, contexts)))

    def text_features(self, batch: PackedBatch) -> Tensor:
        """Features [P, E] at the ``<start_of_img>`` after P texts, in documents of no image besides."""
        return self._contexts(batch, self.language_model.read(batch))

    def _images(self, batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [P, E] of anchored images, tokens [S, E] of images the LM reads, their flat slots [S]."""
        paired, read = batch["paired"], batch["read"]
        tokens_IKW = self.patch_tokens(batch)
        values_IKE = self.pooler.values(tokens_IKW)
        latents_PE = self.pooler.pool(tokens_IKW.index_select(0, paired), values_IKE.index_select(0, paired))
        image_tokens_SE = self.pooler.proj(values_IKE.index_select(0, read)).flatten(0, 1)
        return latents_PE, image_tokens_SE, self.slots(batch).flatten()

    def forward_flops(self, batch: PackedBatch) -> dict[str, int]:
        """Operations by part.

        The heads are the vocabulary's matrix a target and the projection of the context an anchored image.
        The contrastive logits, under a hundredth of the rest, are left out.
        """
        batch = self._seen(batch)
        contexts = 2 * len(batch["paired"]) * self.context_proj.weight.numel()
        return {
            **super().forward_flops(batch),
            "pooler": pooler_flops(self.pooler, self.encoder.tokens_per_image, batch),
            "language_model": language_model_flops(self.language_model, batch["lengths"]),
            "heads": self.generation.flops(batch) + contexts,
        }
