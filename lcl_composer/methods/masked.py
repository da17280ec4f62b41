"""Masked modelling of the text, given the images and the rest of it, as in BEiT-3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.interleave import Layout, LayoutRules
from lcl_composer.data.masked_text import MaskedText
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.methods.generation import Generation
from lcl_composer.methods.method import Method, Outputs
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.flops import language_model_flops, pooler_flops
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.pooler import AttentivePooler


class Masked(Method):
    """Masked data modelling (BEiT-3, arXiv 2208.10442, section 2.2), of the text alone.

    With M the hidden text tokens and x' the document without them,
    ``L = mean over M of -log p(x_m | x', images)``: each position sees all of its document, so the language
    model is run without its causal mask. Every hidden token is ``<img_placehold>``; none is left or replaced
    by another word.

    BEiT-3 hides patches too (40%) and predicts their BEiT v2 tokens: the code book of a frozen network that
    was distilled from CLIP. From scratch there is no such target, so images are given whole and learn from
    the text that they help to predict. The networks are LCL's, not BEiT-3's Multiway Transformer, so that
    methods are compared with one encoder.

    Args:
        encoder: Pixels to patch tokens.
        pooler: Patch tokens to image tokens; its latent, which no loss reads, is frozen.
        language_model: LM over text embeddings and image tokens, without sliding window or softcap.
        vocab_size: Rows V of the head.
        mask_ratio: Share of the text hidden in a document with images (BEiT-3, of pairs: 0.5).
        text_mask_ratio: Share hidden in a document without images (BEiT-3, of texts: 0.15).
        backend: Implementation of the fused loss; null: triton on CUDA, torch elsewhere.
    """

    def __init__(
        self,
        encoder: Encoder,
        pooler: AttentivePooler,
        language_model: TransformersLM,
        vocab_size: int,
        mask_ratio: float = 0.5,
        text_mask_ratio: float = 0.15,
        backend: Literal["torch", "triton"] | None = None,
    ):
        super().__init__()
        self.encoder, self.pooler, self.language_model = encoder, pooler, language_model
        self.pooler.freeze_latent()
        self.mask_ratio, self.text_mask_ratio = mask_ratio, text_mask_ratio
        self.generation = Generation(self, language_model, vocab_size, backend)
        self.terms = {"masked": self.generation.term(1.0)}

    @classmethod
    def refusals(cls, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield a ratio that is no share above 0."""
        for name in ("mask_ratio", "text_mask_ratio"):
            if not 0 < settings[name] <= 1:
                yield name, f"is {settings[name]}, must be above 0 and at most 1"

    def layout(self, tokenizer: Tokenizer, rules: LayoutRules) -> Layout:
        """Documents with some of their text hidden."""
        return MaskedText(tokenizer, rules, self.mask_ratio, self.text_mask_ratio)

    def forward(self, batch: PackedBatch) -> Outputs:
        """Run the packed batch.

        Returns:
            ``hidden`` [N, E], LM outputs at the N hidden tokens, after norm; ``targets`` [N] int64, what they
            are.
        """
        image_tokens_IKE = self.pooler.proj(self.pooler.values(self.patch_tokens(batch)))
        slots_S = self.slots(batch).flatten()
        outputs_TE = self.language_model.read(batch, image_tokens_IKE.flatten(0, 1), slots_S, causal=False)
        return self.generation.outputs(batch, outputs_TE)

    def forward_flops(self, batch: PackedBatch) -> dict[str, int]:
        """Operations by part; the head is the vocabulary's matrix a hidden token."""
        return {
            **super().forward_flops(batch),
            "pooler": pooler_flops(self.pooler, self.encoder.tokens_per_image, batch),
            "language_model": language_model_flops(self.language_model, batch["lengths"], causal=False),
            "heads": self.generation.flops(batch),
        }
