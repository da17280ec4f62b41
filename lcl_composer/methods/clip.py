"""CLIP: an image tower and a text tower under one contrastive loss; with the sigmoid loss it is SigLIP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.interleave import Layout, LayoutRules
from lcl_composer.data.paired import Paired
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.methods.contrast import Contrast, ContrastiveLoss
from lcl_composer.methods.method import Method, Outputs, Term
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.flops import language_model_flops, pooler_flops
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.pooler import AttentivePooler


class CLIP(Method):
    """Contrastive language-image pre-training on pairs (arXiv 2103.00020, figure 3).

    The image's feature is the encoder's class token after its final norm, projected, as in OpenCLIP; with a
    pooler it is the pooler's latent. The text's is the causal language model's output at ``<end_of_text>``
    after norm and projection. ``contrastive: sigmoid`` with ``logit_scale_init: 10`` is SigLIP's loss (arXiv
    2303.15343). The OPT language models here have the layout of OpenCLIP's text tower, so its weights go in
    and out, see ``models/open_clip.py``.

    Args:
        encoder: Pixels to patch tokens.
        language_model: The text tower.
        pooler: Patch tokens to the latent; None for the class token.
        logit_scale_init: Inverse temperature at the start; it is learned.
        logit_scale_max: The inverse temperature is clamped here.
        contrastive: ``info_nce`` (CLIP's), or ``sigmoid`` (SigLIP's, with a learnable bias from -10).
        backend: Implementation of the fused loss; null: triton on CUDA, torch elsewhere.

    Raises:
        ConfigError: If there is no pooler and the encoder has no class token.
    """

    def __init__(
        self,
        encoder: Encoder,
        language_model: TransformersLM,
        pooler: AttentivePooler | None = None,
        logit_scale_init: float = 1 / 0.07,
        logit_scale_max: float = 100.0,
        contrastive: ContrastiveLoss = "info_nce",
        backend: Literal["torch", "triton"] | None = None,
    ):
        super().__init__()
        width = language_model.hidden_size
        contrast = Contrast(self, contrastive, logit_scale_init, logit_scale_max, backend)
        self.encoder, self.language_model, self.pooler = encoder, language_model, pooler
        self.image_proj = None
        if pooler is None:
            encoder.check_class_token()
            self.image_proj = nn.Linear(encoder.width, width, bias=False)
            nn.init.normal_(self.image_proj.weight, std=encoder.width**-0.5)  # as OpenCLIP's visual.proj
        self.context_norm = nn.LayerNorm(width)
        self.context_proj = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.context_proj.weight, std=width**-0.5)  # as OpenCLIP's text_projection
        self.terms = {"contrastive": Term(1.0, "pairs", ("image_features", "text_features"), contrast)}

    @classmethod
    def contrasts(cls, settings: Mapping[str, Any]) -> bool:
        """Always."""
        return True

    def layout(self, tokenizer: Tokenizer, rules: LayoutRules) -> Layout:
        """A text and the image beside it."""
        return Paired(tokenizer, rules)

    def forward(self, batch: PackedBatch) -> Outputs:
        """Run the packed batch.

        Returns:
            ``image_features`` [P, E] and ``text_features`` [P, E] of the P pairs, not normalised.
        """
        text_PE = self.text_features(batch)
        if self.image_proj is None:
            assert self.pooler is not None
            image_PE = self.pooler(self.patch_tokens(batch))
        else:
            image_PE = self.image_proj(self.class_tokens(batch))
        return {"image_features": image_PE, "text_features": text_PE}

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Features [I, E] of images [I, 3, H, W], not normalised."""
        if self.image_proj is None:
            return super().image_features(pixel_values)
        return self.image_proj(self.encoder.class_tokens(pixel_values))

    def text_features(self, batch: PackedBatch) -> Tensor:
        """Features [P, E] of the texts of P pairs, at ``<end_of_text>``, not normalised."""
        outputs_TE = self.language_model.read(batch)
        return self.context_proj(self.context_norm(outputs_TE.index_select(0, batch["anchors"])))

    def forward_flops(self, batch: PackedBatch) -> dict[str, int]:
        """Operations by part; the heads are the two projections of a pair."""
        flops = super().forward_flops(batch)
        if self.pooler is not None:
            flops["pooler"] = pooler_flops(self.pooler, self.encoder.tokens_per_image, batch)
        heads = [head.weight.numel() for head in (self.image_proj, self.context_proj) if head is not None]
        return {
            **flops,
            "language_model": language_model_flops(self.language_model, batch["lengths"]),
            "heads": 2 * len(batch["anchors"]) * sum(heads),
        }
