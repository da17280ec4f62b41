"""Emu: the next token of the text is classified, the next token of an image regressed."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.interleave import Interleaved, Layout, LayoutRules, Readers
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.losses.generation import share
from lcl_composer.methods.generation import Generation
from lcl_composer.methods.method import Method, Outputs, Term
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.flops import language_model_flops, pooler_flops
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.pooler import AttentivePooler


class Emu(Method):
    """Emu (arXiv 2307.05222, section 2.2): generation of the text, regression of the image tokens.

    ``L = generation_weight * L_gen + regression_weight * L_reg``. L_gen is next-token prediction of the text.
    For L_reg the output before each of an image's K tokens u_1 .. u_K (at ``<start_of_img>`` for the first)
    goes through a linear head; with predictions v_k and width E,
    ``L_reg = mean over images of 1 / (K E) * sum_k |v_k - sg(u_k)|^2``.

    The target is stopped (sg), as in Emu's code, which detaches its regression labels. There the encoder is
    a pretrained EVA-CLIP. From scratch the targets are those of the encoder that is being trained, and
    nothing sets images apart from one another: the stop takes away the gradient that would pull targets
    together, but u reaches L_reg through the language model's inputs as well, and an encoder whose tokens
    are alike for all images makes L_reg vanish. LCL (arXiv 2406.07543) reports 5.7% on ImageNet.

    The image tokens are LCL's, the pooler's values after its projection, in the order of the patches, so that
    the methods are compared with one network; Emu's Causal Transformer, which makes 32 of them, is left out.
    The paper weighs the two losses alike.

    Args:
        encoder: Pixels to patch tokens.
        pooler: Patch tokens to image tokens; its latent, which no loss reads, is frozen.
        language_model: Causal LM over text embeddings and image tokens.
        vocab_size: Rows V of the generation head.
        generation_weight: Weight of L_gen; at 0 neither it nor what it alone reads is computed.
        regression_weight: Weight of L_reg; the same.
        backend: Implementation of the fused generation loss; null: triton on CUDA, torch elsewhere.
    """

    def __init__(
        self,
        encoder: Encoder,
        pooler: AttentivePooler,
        language_model: TransformersLM,
        vocab_size: int,
        generation_weight: float = 1.0,
        regression_weight: float = 1.0,
        backend: Literal["torch", "triton"] | None = None,
    ):
        super().__init__()
        width = language_model.hidden_size
        self.encoder, self.pooler, self.language_model = encoder, pooler, language_model
        self.pooler.freeze_latent()
        self.generation = Generation(self, language_model, vocab_size, backend)
        self.regression_head = nn.Linear(width, width, bias=False)
        reads = ("predicted_tokens", "image_tokens")
        self.terms = {
            "generation": self.generation.term(generation_weight),
            "regression": Term(regression_weight, "read_images", reads, regression_loss),
        }

    def layout(self, tokenizer: Tokenizer, rules: LayoutRules) -> Layout:
        """LCL's without anchors, and with the slots of all images while L_reg has a weight."""
        generation, regression = (self.terms[name].weight > 0 for name in ("generation", "regression"))
        return Interleaved(tokenizer, rules, Readers(generation, False, regression))

    def forward(self, batch: PackedBatch) -> Outputs:
        """Run the packed batch.

        Returns:
            ``image_tokens`` [I, K, E]; ``predicted_tokens`` [I, K, E], what the language model expects in
            their place; ``hidden`` [N, E] at the N positions that predict, after norm; ``targets`` [N] int64.
            In training I is 0 in the first two while L_reg has no weight.
        """
        image_tokens_IKE = self.pooler.proj(self.pooler.values(self.patch_tokens(batch)))
        slots_S = self.slots(batch).flatten()
        outputs_TE = self.language_model.read(batch, image_tokens_IKE.flatten(0, 1), slots_S)
        regressed_IKE, regressed_S = image_tokens_IKE, slots_S
        if not self.needs("regression"):
            regressed_IKE, regressed_S = image_tokens_IKE[:0], slots_S[:0]
        before_SE = outputs_TE.index_select(0, regressed_S - 1)
        predicted_SE = self.regression_head(self.generation.normalise(before_SE))
        return {
            "image_tokens": regressed_IKE,
            "predicted_tokens": predicted_SE.view_as(regressed_IKE),
            **self.generation.outputs(batch, outputs_TE),
        }

    def forward_flops(self, batch: PackedBatch) -> dict[str, int]:
        """Operations by part; the heads are the vocabulary's matrix a target and E x E an image token."""
        slots = len(batch["read"]) * self.encoder.tokens_per_image if self.needs("regression") else 0
        return {
            **super().forward_flops(batch),
            "pooler": pooler_flops(self.pooler, self.encoder.tokens_per_image, batch),
            "language_model": language_model_flops(self.language_model, batch["lengths"]),
            "heads": self.generation.flops(batch) + 2 * slots * self.regression_head.weight.numel(),
        }


def regression_loss(predicted_IKE: Tensor, target_IKE: Tensor, total: Tensor) -> Tensor:
    """This rank's and microbatch's share of L_reg: squared distance to constant targets, in float32.

    Args:
        predicted_IKE: [I, K, E] predictions; I may be 0.
        target_IKE: [I, K, E] image tokens; they get no gradient.
        total: Images of the global batch.
    """
    squared_IKE = (predicted_IKE.float() - target_IKE.detach().float()).square()
    return share(squared_IKE.mean((1, 2)).sum(), total)
