"""Flamingo: text predicted from the text before it and, through cross-attention, from the image before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from torch import nn

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.interleave import Layout, LayoutRules
from lcl_composer.data.tagged import Tagged
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.errors import ConfigError
from lcl_composer.methods.generation import Generation
from lcl_composer.methods.method import Method, Outputs
from lcl_composer.models.cross_attention import SeenImages
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.flops import language_model_flops
from lcl_composer.models.gated_cross_attention import GatedCrossAttention
from lcl_composer.models.language_model import TransformersLM


class Flamingo(Method):
    """Flamingo (arXiv 2204.14198, sections 2.1 to 2.3) with everything trained from scratch.

    ``L = -mean log p(next token | tokens before it, the last image before it)``, over the tokens of the text,
    ``<start_of_img>`` and ``<end_of_text>``: the targets of LCL. An image stands in the text as one token,
    ``<start_of_img>``, which is Flamingo's ``<image>`` and, being predicted, its end of chunk ``<EOC>`` too.
    From there up to the next image every token attends to the image's patch tokens, in gated blocks before
    every n-th layer; text before the first image attends to none.

    Flamingo's Perceiver resampler is left out. It makes 64 tokens of any number of them, for video and large
    images; here an image has a fixed number, all of which LCL's language model reads too. Trained from
    scratch, its layers over the patches would be vision layers that no evaluation of the encoder sees.
    Whether the comparison in arXiv 2406.07543, table 1, had it is not known to us.

    Args:
        encoder: Pixels to patch tokens.
        language_model: Causal LM over text embeddings.
        vocab_size: Rows V of the generation head.
        cross_layer_interval: n: blocks stand before the layers n, 2n, ...; 1 is Flamingo-3B, 4 Flamingo-9B.
        backend: Implementation of the fused loss; null: triton on CUDA, torch elsewhere.

    Raises:
        ConfigError: If the language model has fewer layers than n.
    """

    part_names: ClassVar[tuple[str, ...]] = ("encoder", "cross_attention", "language_model")

    def __init__(
        self,
        encoder: Encoder,
        language_model: TransformersLM,
        vocab_size: int,
        cross_layer_interval: int = 1,
        backend: Literal["torch", "triton"] | None = None,
    ):
        super().__init__()
        self.encoder, self.language_model = encoder, language_model
        config: Any = language_model.backbone.config
        layers = range(cross_layer_interval - 1, config.num_hidden_layers, cross_layer_interval)
        if not layers:
            raise ConfigError(
                f"method.cross_layer_interval is {cross_layer_interval}, but the language model has "
                f"{config.num_hidden_layers} layers: no image would be seen; lower it"
            )
        width, heads = language_model.hidden_size, config.num_attention_heads
        blocks = [GatedCrossAttention(width, encoder.width, heads) for _ in layers]
        self.cross_attention = nn.ModuleList(blocks)
        language_model.insert_before(dict(zip(layers, blocks, strict=True)))
        self.generation = Generation(self, language_model, vocab_size, backend)
        self.terms = {"generation": self.generation.term(1.0)}

    @classmethod
    def refusals(cls, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield an interval below 1."""
        yield from super().refusals(settings)
        if settings["cross_layer_interval"] < 1:
            yield "cross_layer_interval", f"is {settings['cross_layer_interval']}, must be at least 1"

    def layout(self, tokenizer: Tokenizer, rules: LayoutRules) -> Layout:
        """Images as one token in their places."""
        return Tagged(tokenizer, rules)

    def forward(self, batch: PackedBatch) -> Outputs:
        """Run the packed batch.

        Returns:
            ``hidden`` [N, E] LM outputs at the N positions that predict, after norm; ``targets`` [N] int64.
        """
        tokens_RKW = self.patch_tokens(batch).index_select(0, batch["read"])
        starts_R = batch["image_starts"].index_select(0, batch["read"])
        images = SeenImages.from_starts(tokens_RKW, starts_R, batch["spans"])
        return self.generation.outputs(batch, self.language_model.read(batch, images=images))

    def forward_flops(self, batch: PackedBatch) -> dict[str, int]:
        """Operations by part; the head is the vocabulary's matrix a target."""
        block: Any = self.cross_attention[0]
        cross = block.flops(sum(batch["lengths"]), batch["spans"], self.encoder.tokens_per_image)
        return {
            **super().forward_flops(batch),
            "cross_attention": len(self.cross_attention) * cross,
            "language_model": language_model_flops(self.language_model, batch["lengths"]),
            "heads": self.generation.flops(batch),
        }
