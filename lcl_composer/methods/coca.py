"""CoCa: an image and a text tower that are contrasted, and a decoder on top of both that writes the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, cast

from torch import Tensor, nn

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.interleave import Layout, LayoutRules
from lcl_composer.data.paired import Paired
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.methods.contrast import Contrast
from lcl_composer.methods.generation import Generation
from lcl_composer.methods.method import Method, Outputs, Term
from lcl_composer.models.attentional_pooler import AttentionalPooler
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.flops import language_model_flops
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.multimodal_decoder import MultimodalDecoder


class CoCa(Method):
    """Contrastive captioner on pairs (arXiv 2205.01917, section 3.2, figure 2).

    ``L = contrastive_weight * L_con + captioning_weight * L_cap``: symmetric InfoNCE between image and text,
    and next-token prediction of the text given the image. The language model is the unimodal text decoder,
    causal and without cross-attention; its output at ``<end_of_text>``, which has seen the whole text and
    stands for the paper's ``[CLS]``, is the text's feature. The multimodal decoder goes on from its outputs
    at the positions that predict, with cross-attention to the image.

    The image enters through two attentional poolers in a cascade, the paper's default: ``num_queries`` tokens
    of the patches for the captions, one of those tokens for the contrast. Norm and projection of the two
    features are OpenCLIP's.

    Args:
        encoder: Pixels to patch tokens.
        language_model: The unimodal text decoder: the lower half of the layers.
        vocab_size: Rows V of the captioning head.
        contrastive_weight: Weight of L_con; at 0 neither it nor what it alone reads is computed.
        captioning_weight: Weight of L_cap; the same.
        multimodal_layers: Layers of the multimodal decoder; null: as many as the language model's.
        num_queries: Tokens of an image that the multimodal decoder attends to.
        logit_scale_init: Inverse temperature at the start; it is learned.
        logit_scale_max: The inverse temperature is clamped here.
        backend: Implementation of the fused losses; null: triton on CUDA, torch elsewhere.
    """

    part_names: ClassVar[tuple[str, ...]] = (
        "encoder",
        "captioning_pooler",
        "contrastive_pooler",
        "language_model",
        "multimodal_decoder",
    )

    def __init__(
        self,
        encoder: Encoder,
        language_model: TransformersLM,
        vocab_size: int,
        contrastive_weight: float = 1.0,
        captioning_weight: float = 2.0,
        multimodal_layers: int | None = None,
        num_queries: int = 256,
        logit_scale_init: float = 1 / 0.07,
        logit_scale_max: float = 100.0,
        backend: Literal["torch", "triton"] | None = None,
    ):
        super().__init__()
        width, config = language_model.hidden_size, language_model.backbone.config
        layers, heads = multimodal_layers or config.num_hidden_layers, config.num_attention_heads
        self.encoder, self.language_model = encoder, language_model
        self.captioning_pooler = AttentionalPooler(num_queries, encoder.width, width, heads)
        self.contrastive_pooler = AttentionalPooler(1, width, width, heads)
        self.multimodal_decoder = MultimodalDecoder(width, layers, heads)
        self.image_norm, self.context_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.image_proj, self.context_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        for projection in (self.image_proj, self.context_proj):
            nn.init.normal_(projection.weight, std=width**-0.5)  # as OpenCLIP's
        self.captioning = Generation(self, self.multimodal_decoder, vocab_size, backend)
        contrast = Contrast(self, "info_nce", logit_scale_init, logit_scale_max, backend)
        sides = ("image_features", "text_features")
        self.terms = {
            "contrastive": Term(contrastive_weight, "pairs", sides, contrast),
            "captioning": self.captioning.term(captioning_weight),
        }

    @classmethod
    def contrasts(cls, settings: Mapping[str, Any]) -> bool:
        """Where L_con has a weight."""
        return settings["contrastive_weight"] > 0

    @classmethod
    def refusals(cls, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield sizes below 1."""
        yield from super().refusals(settings)
        for name in ("multimodal_layers", "num_queries"):
            if settings[name] is not None and settings[name] < 1:
                yield name, f"is {settings[name]}, must be at least 1"

    def layout(self, tokenizer: Tokenizer, rules: LayoutRules) -> Layout:
        """A text, each token of which predicts the next, and the image beside it."""
        return Paired(tokenizer, rules, predicts=True)

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor | None, Tensor]:
        """Features [I, E] as the contrast reads them, and patch tokens [I, K, W] of images [I, 3, H, W]."""
        tokens_IKW = self.encoder(pixel_values)
        return self._image_features(self.captioning_pooler(tokens_IKW)), tokens_IKW

    def _image_features(self, tokens_InE: Tensor) -> Tensor:
        """Features [I, E] of the tokens that the captioning pooler made."""
        return self.image_proj(self.image_norm(self.contrastive_pooler(tokens_InE).squeeze(1)))

    def forward(self, batch: PackedBatch) -> Outputs:
        """Run the packed batch.

        Returns:
            ``image_features`` and ``text_features`` [P, E] of the P pairs, not normalised; ``hidden`` [N, E]
            outputs of the multimodal decoder at the N positions that predict, after norm; ``targets`` [N]. In
            training P is 0 while L_con has no weight, and N while L_cap has none.
        """
        predicting_N, lengths = batch["predicting"], self._decoded(batch)
        contrasts = self.needs("contrastive")
        if contrasts:
            outputs_TE = self.language_model.read(batch)
            ends_PE = outputs_TE.index_select(0, batch["anchors"])
            captions_NE = outputs_TE.index_select(0, predicting_N[: sum(lengths)])
        else:  # no loss reads <end_of_text>
            outputs_NE = self.language_model.read(_without_ends(batch))
            ends_PE, captions_NE = outputs_NE[:0], outputs_NE[: sum(lengths)]
        tokens_PnE = self.captioning_pooler(self.patch_tokens(batch))
        captioned_PnE = tokens_PnE if lengths else tokens_PnE[:0]
        contrasted_PnE = tokens_PnE if contrasts else tokens_PnE[:0]
        decoded_NE = self.multimodal_decoder(captions_NE, lengths, captioned_PnE)
        return {
            "image_features": self._image_features(contrasted_PnE),
            "text_features": self._text_features(ends_PE),
            "hidden": self.captioning.normalise(decoded_NE),
            "targets": batch["targets"].index_select(0, predicting_N[: sum(lengths)]),
        }

    def _decoded(self, batch: PackedBatch) -> list[int]:
        """Tokens of each pair that the multimodal decoder reads, none while L_cap has no weight."""
        return _captions(batch) if self.needs("captioning") else []

    def _text_features(self, ends_PE: Tensor) -> Tensor:
        """Features [P, E] of the outputs at ``<end_of_text>``."""
        return self.context_proj(self.context_norm(ends_PE))

    def text_features(self, batch: PackedBatch) -> Tensor:
        """Features [P, E] of the texts of P pairs, at ``<end_of_text>``, not normalised."""
        outputs_TE = self.language_model.read(batch)
        return self._text_features(outputs_TE.index_select(0, batch["anchors"]))

    def forward_flops(self, batch: PackedBatch) -> dict[str, int]:
        """Operations by part; the heads are two projections a pair and the vocabulary's matrix a target."""
        pairs, queries, lengths = len(batch["anchors"]), len(self.captioning_pooler.query), batch["lengths"]
        contrasted = pairs if self.needs("contrastive") else 0
        projections = 2 * contrasted * (self.image_proj.weight.numel() + self.context_proj.weight.numel())
        vocabulary = self.captioning.flops(batch) if self.needs("captioning") else 0
        read = lengths if self.needs("contrastive") else _captions(batch)
        return {
            **super().forward_flops(batch),
            "captioning_pooler": self.captioning_pooler.flops(pairs, self.encoder.tokens_per_image),
            "contrastive_pooler": self.contrastive_pooler.flops(contrasted, queries),
            "language_model": language_model_flops(self.language_model, read),
            "multimodal_decoder": self.multimodal_decoder.flops(self._decoded(batch), queries),
            "heads": vocabulary + projections,
        }


def _captions(batch: PackedBatch) -> list[int]:
    """Tokens of each pair that predict: all but ``<end_of_text>``."""
    return [length - 1 for length in batch["lengths"] if length]


def _without_ends(batch: PackedBatch) -> PackedBatch:
    """The texts without ``<end_of_text>``, which nothing follows: of a batch what a language model reads."""
    inputs = {name: batch[name].index_select(0, batch["predicting"]) for name in ("tokens", "positions")}
    return cast(PackedBatch, {**inputs, "lengths": _captions(batch)})
