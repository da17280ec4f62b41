"""Masked modelling of text given images, and of images against a frozen encoder, as in BEiT-3."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.hidden_patches import HiddenPatches
from lcl_composer.data.interleave import Layout, LayoutRules
from lcl_composer.data.masked_text import MaskedText
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.errors import ConfigError
from lcl_composer.losses.generation import share
from lcl_composer.methods.generation import Generation
from lcl_composer.methods.method import Method, Outputs, Term
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.flops import encoder_flops, language_model_flops, pooler_flops
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.pooler import AttentivePooler

#: BEiT-3's share of the patches of an image.
_PATCH_MASK_RATIO = 0.4


class Masked(Method):
    """Masked data modelling (BEiT-3, arXiv 2208.10442, section 2.2), of text, and of images against a target.

    ``L = L_text + image_weight * L_image``. With M the hidden text tokens and x' the document without them,
    ``L_text = mean over M of -log p(x_m | x', images)``: each position sees all of its document, so the
    language model is run without its causal mask. Every hidden token is ``<img_placehold>``; none is left or
    replaced by another word.

    With ``model.target_encoder``, a frozen network t, patches of every image are hidden too, in blocks, as
    BEiT-3 does in image-text pairs: the language model reads the image as the encoder gives it without them.
    The encoder f gets a learned mask token in place of their embeddings, position embeddings added as ever
    (BEiT, arXiv 2106.08254). With P the hidden patches of all images and W, b a linear head,
    ``L_image = mean over P of 1 - cos(W f(v')_p + b, t(v)_p)``, v the image and v' what is left of it. BEiT-3
    classifies the tokens of BEiT v2's code book; where the target gives features, this is EVA's loss (arXiv
    2211.07636, section 2), a negative cosine, with 1 added so that it is not below 0. t sees the whole image
    under its own pixel normalisation, in eval mode; it is never trained.

    Without a target (from scratch there is none) images are given whole and learn from the text that they
    help to predict. The networks are LCL's, not BEiT-3's Multiway Transformer, so that methods are
    compared with one encoder; hidden patches are predicted from their image alone, as the encoder reads no
    text.

    Args:
        encoder: Pixels to patch tokens; with a target timm's VisionTransformer.
        pooler: Patch tokens to image tokens; its latent, which no loss reads, is frozen.
        language_model: LM over text embeddings and image tokens, without sliding window or softcap.
        vocab_size: Rows V of the head.
        target_encoder: Any encoder of the same patches, of any width; None: images are whole.
        mask_ratio: Share of the text hidden in a document with images (BEiT-3, of pairs: 0.5).
        text_mask_ratio: Share hidden in a document without images (BEiT-3, of texts: 0.15).
        patch_mask_ratio: Share of the patches hidden, where there is a target; null: BEiT-3's 0.4.
        image_weight: Weight of L_image, where there is a target.
        backend: Implementation of the fused loss; null: triton on CUDA, torch elsewhere.

    Raises:
        ConfigError: If the encoder has no place for a mask token, the target's patches are others, or a
            setting of images is given without a target.
    """

    part_names: ClassVar[tuple[str, ...]] = ("target_encoder", "encoder", "pooler", "language_model")

    def __init__(
        self,
        encoder: Encoder,
        pooler: AttentivePooler,
        language_model: TransformersLM,
        vocab_size: int,
        target_encoder: Encoder | None = None,
        mask_ratio: float = 0.5,
        text_mask_ratio: float = 0.15,
        patch_mask_ratio: float | None = None,
        image_weight: float = 1.0,
        backend: Literal["torch", "triton"] | None = None,
    ):
        super().__init__()
        self.target_encoder = target_encoder
        self.encoder, self.pooler, self.language_model = encoder, pooler, language_model
        self.pooler.freeze_latent()
        self.mask_ratio, self.text_mask_ratio = mask_ratio, text_mask_ratio
        self.patches: HiddenPatches | None = None
        self.generation = Generation(self, language_model, vocab_size, backend)
        self.terms = {"masked": self.generation.term(1.0)}
        if target_encoder is not None:
            ratio = _PATCH_MASK_RATIO if patch_mask_ratio is None else patch_mask_ratio
            self.patches = HiddenPatches.share(_common_grid(encoder, target_encoder), ratio)
            self._predict_images(target_encoder, image_weight)
        elif patch_mask_ratio is not None or image_weight != 1:
            name = "image_weight" if patch_mask_ratio is None else "patch_mask_ratio"
            raise ConfigError(f"method.{name}: nothing of images is predicted; give model.target_encoder")

    def _predict_images(self, target: Encoder, weight: float) -> None:
        """Freeze the target, and add what its features are predicted by."""
        target.requires_grad_(False).eval()
        self._target_flops = encoder_flops(target)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.encoder.width), std=0.02))
        self.image_head = nn.Linear(self.encoder.width, target.width)
        reads = ("predicted_features", "target_features")
        self.terms["image"] = Term(weight, "images", reads, feature_loss)

    @classmethod
    def refusals(cls, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield a ratio that is no share above 0, and a weight that is not above 0."""
        for name in ("mask_ratio", "text_mask_ratio"):
            if not 0 < settings[name] <= 1:
                yield name, f"is {settings[name]}, must be above 0 and at most 1"
        ratio, weight = settings["patch_mask_ratio"], settings["image_weight"]
        if ratio is not None and not 0 < ratio < 1:
            yield "patch_mask_ratio", f"is {ratio}, must be above 0 and below 1"
        if not weight > 0:
            yield (
                "image_weight",
                f"is {weight}, must be above 0; for whole images set no target_encoder",
            )

    def layout(self, tokenizer: Tokenizer, rules: LayoutRules) -> Layout:
        """Documents with some of their text hidden and, where there is a target, of their images' patches."""
        return MaskedText(tokenizer, rules, self.mask_ratio, self.text_mask_ratio, self.patches)

    def train(self, mode: bool = True) -> Masked:
        """Set the mode of all but the target, which stays in eval mode."""
        super().train(mode)
        if self.target_encoder is not None:
            self.target_encoder.eval()
        return self

    def forward(self, batch: PackedBatch) -> Outputs:
        """Run the packed batch.

        Returns:
            ``hidden`` [N, E], LM outputs at the N hidden tokens, after norm; ``targets`` [N] int64, what they
            are. With a target of width D ``predicted_features`` and ``target_features`` [I, n, D] at the n
            hidden patches of each image.
        """
        tokens_IKW = self._masked_tokens(batch)
        image_tokens_IKE = self.pooler.proj(self.pooler.values(tokens_IKW))
        slots_S = self.slots(batch).flatten()
        outputs_TE = self.language_model.read(batch, image_tokens_IKE.flatten(0, 1), slots_S, causal=False)
        outputs = self.generation.outputs(batch, outputs_TE)
        if self.target_encoder is None:
            return outputs
        with torch.no_grad():
            features_IKD = self._encode(batch, self.target_encoder)
        hidden_In = batch["hidden_patches"]
        predicted_InD = self.image_head(_at(tokens_IKW, hidden_In))
        return {
            **outputs,
            "predicted_features": predicted_InD,
            "target_features": _at(features_IKD, hidden_In),
        }

    def _masked_tokens(self, batch: PackedBatch) -> Tensor:
        """Patch tokens [I, K, W] of the images, the mask token in place of their hidden patches.

        The encoder's own modules and weights are as ever before and after: what else reads it, and what is
        exported, knows no mask.
        """
        if self.patches is None:
            return self.patch_tokens(batch)
        hidden_In = batch["hidden_patches"]
        if not len(hidden_In):  # of the blank image that runs in place of none
            hidden_In = hidden_In.new_zeros(1, 1)

        def hide(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
            mask_IK = hidden_In.new_zeros(len(hidden_In), self.encoder.tokens_per_image, dtype=torch.bool)
            mask = mask_IK.scatter(1, hidden_In, True).view(*embedded.shape[:-1], 1)
            return torch.where(mask, self.mask_token.to(embedded.dtype), embedded)

        hook = self.encoder.backbone.patch_embed.register_forward_hook(hide)
        try:
            return self.patch_tokens(batch)
        finally:
            hook.remove()

    def forward_flops(self, batch: PackedBatch) -> dict[str, int]:
        """Operations by part; the heads are the vocabulary's matrix a hidden token, the other a patch."""
        of_images, heads = {}, self.generation.flops(batch)
        if self.patches is not None:
            images = len(batch["pixel_values"])
            of_images = {"target_encoder": self._target_flops * images}
            heads += 2 * images * self.patches.count * self.image_head.weight.numel()
        return {
            **of_images,
            **super().forward_flops(batch),
            "pooler": pooler_flops(self.pooler, self.encoder.tokens_per_image, batch),
            "language_model": language_model_flops(self.language_model, batch["lengths"], causal=False),
            "heads": heads,
        }


def _at(tokens_IKW: Tensor, patches_In: Tensor) -> Tensor:
    """Tokens [I, n, W] of n patches of each image."""
    return tokens_IKW.gather(1, patches_In.unsqueeze(-1).expand(-1, -1, tokens_IKW.shape[-1]))


def feature_loss(predicted_InD: Tensor, target_InD: Tensor, total: Tensor) -> Tensor:
    """This rank's and microbatch's share of L_image, in float32.

    Every image hides n patches, so that the mean over images of the mean over theirs is that over all.

    Args:
        predicted_InD: [I, n, D] predictions; I may be 0.
        target_InD: [I, n, D] features of the target; they get no gradient.
        total: Images of the global batch.
    """
    distances_In = 1 - F.cosine_similarity(predicted_InD.float(), target_InD.float(), dim=-1)
    return share(distances_In.mean(1).sum(), total)


def _common_grid(encoder: Encoder, target: Encoder) -> tuple[int, int]:
    """Rows and columns of the patches of both.

    Raises:
        ConfigError: If the two see other patches, or in the encoder nothing can stand for a hidden one.
    """
    backbone = encoder.backbone
    if (
        not isinstance(backbone, VisionTransformer)
        or not isinstance(backbone.patch_embed, PatchEmbed)
        or not isinstance(backbone.patch_drop, nn.Identity)
        or backbone.pos_embed is None
    ):
        raise ConfigError(
            "model.target_encoder: hides patches of timm's VisionTransformer, with position embeddings and "
            f"all of its patches, and model.encoder is {encoder.source}; take such a one or remove the target"
        )
    grid, others = _grid(encoder), _grid(target)
    if grid != others or encoder.image_size != target.image_size:
        raise ConfigError(
            f"model.target_encoder: {target.source} sees {others[0]} x {others[1]} patches of "
            f"{target.image_size} pixels, model.encoder, {encoder.source}, {grid[0]} x {grid[1]} of "
            f"{encoder.image_size}; both must see the same"
        )
    if grid == (1, 1):
        raise ConfigError("model.target_encoder: an image is one patch; hidden, nothing of it would be left")
    return grid


def _grid(encoder: Encoder) -> tuple[int, int]:
    """Rows and columns of an encoder's patches: square, where its patch embedding does not say otherwise."""
    patches, side = encoder.tokens_per_image, math.isqrt(encoder.tokens_per_image)
    rows, columns = getattr(getattr(encoder.backbone, "patch_embed", None), "grid_size", None) or (side, side)
    return (rows, columns) if rows * columns == patches else (side, patches // side)
