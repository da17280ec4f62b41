"""The LCL network: images to latents, interleave with text, language model, outputs that the losses see."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from lcl_composer.data.batch import IGNORE, PackedBatch
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.pooler import AttentivePooler


class LCLOutputs(TypedDict):
    """What the losses take: P anchored images, N generation targets."""

    image_features: Tensor  # [P, E] pooled latents, not normalised
    context_features: Tensor  # [P, E] LM outputs at <start_of_img> after norm and projection, not normalised
    hidden: Tensor  # [N, E] LM outputs at the positions that predict a target, after norm
    targets: Tensor  # [N] int64


class LCLNetwork(nn.Module):
    """Encoder, pooler, language model and two heads (LCL, figure 2).

    Args:
        encoder: Pixels to patch tokens.
        pooler: Patch tokens to the latent and to the language model's image tokens.
        language_model: Causal LM over text embeddings and image tokens.
        vocab_size: Rows V of the generation head.
    """

    #: [I, K'] numbers of the patches that the encoder kept in this forward; None: all. Set by PatchDropout.
    kept_patches: Tensor | None = None

    def __init__(
        self, encoder: Encoder, pooler: AttentivePooler, language_model: TransformersLM, vocab_size: int
    ):
        super().__init__()
        width = language_model.hidden_size
        self.encoder = encoder
        self.pooler = pooler
        self.language_model = language_model
        self.context_norm = nn.LayerNorm(width)
        self.context_proj = nn.Linear(width, width, bias=False)
        self.generation_norm = nn.Identity() if language_model.has_final_norm else nn.LayerNorm(width)
        self.generation_head = nn.Linear(width, vocab_size, bias=False)
        nn.init.normal_(self.context_proj.weight, std=width**-0.5)  # as OpenCLIP's text_projection

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled latents [I, E] and patch tokens [I, K, W] of images [I, 3, H, W]."""
        tokens_IKW = self.encoder(pixel_values)
        return self.pooler(tokens_IKW), tokens_IKW

    def forward(self, batch: PackedBatch) -> LCLOutputs:
        """Run the packed batch; only what a loss will see is computed."""
        anchored = batch["anchors"] >= 0
        latents_PE, image_tokens_SE, slots = self._images(batch, anchored)
        outputs_TE = self._language(batch, image_tokens_SE, slots)
        predicting = (batch["targets"] != IGNORE).nonzero().squeeze(1)
        context_PE = self.context_proj(self.context_norm(outputs_TE[batch["anchors"][anchored]]))
        return {
            "image_features": latents_PE,
            "context_features": context_PE,
            "hidden": self.generation_norm(outputs_TE[predicting]),
            "targets": batch["targets"][predicting],
        }

    def _images(self, batch: PackedBatch, anchored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [P, E] of anchored images, tokens [S, E] of images the LM reads, their flat slots [S].

        A batch without images still runs one blank image whose outputs are emptied: every rank must put
        every parameter into its graph, or DDP and FSDP stop (COMPOSER.md).
        """
        pixels, starts = batch["pixel_values"], batch["image_starts"]
        if len(pixels) == 0:
            side = self.encoder.image_size
            pixels = pixels.new_zeros(1, 3, side, side)
            starts = starts.new_full((1,), -1)
            anchored = starts >= 0
        tokens_IKW = self.encoder(pixels)
        values_IKE = self.pooler.values(tokens_IKW)
        latents_PE = self.pooler.pool(tokens_IKW[anchored], values_IKE[anchored])
        read = starts >= 0
        image_tokens_SE = self.pooler.proj(values_IKE[read]).flatten(0, 1)
        kept_IK = self.kept_patches
        if kept_IK is None:
            kept_IK = torch.arange(tokens_IKW.shape[1], device=starts.device).expand(len(starts), -1)
        slots = starts[read, None] + kept_IK[read]
        return latents_PE, image_tokens_SE, slots.flatten()

    def _language(self, batch: PackedBatch, image_tokens_SE: Tensor, slots: Tensor) -> Tensor:
        """LM outputs [T, E] of text embeddings with the image tokens put into their slots."""
        tokens, positions = batch["tokens"], batch["positions"]
        lengths = [n for n in batch["cu_seqlens"].diff().tolist() if n]
        if not lengths:  # every document of the batch was bad: one blank token keeps the graph whole
            tokens, positions, lengths = tokens.new_zeros(1), positions.new_zeros(1), [1]
        embeddings_TE = self.language_model.embed(tokens)
        embeddings_TE = embeddings_TE.index_copy(0, slots, image_tokens_SE.to(embeddings_TE.dtype))
        return self.language_model(embeddings_TE, positions, lengths)
