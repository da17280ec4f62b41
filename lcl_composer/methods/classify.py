"""Classification by attention probes on an encoder's patch tokens: frozen transfer, or full."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.interleave import Layout, LayoutRules
from lcl_composer.data.labelled import Labelled
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.losses.classification import classification_loss
from lcl_composer.methods.method import Method, Outputs, Term
from lcl_composer.models.attention_probe import AttentionProbes, Query, TokenNorm
from lcl_composer.models.encoder import Encoder

_AXES = ("lr", "weight_decay")

#: A projection is never wider: beyond this it is a slip of the hand.
_WIDEST = 1 << 16


class Head(NamedTuple):
    """How one head of a grid is trained."""

    lr: float
    weight_decay: float


class Classify(Method):
    """Attention probe and linear head on patch tokens, cross-entropy with the class (LCL, table 1).

    Documents are labelled images, as ``lcl convert imagefolder`` makes them; the classes are those of
    ``data.train``, sorted by name. With ``algorithms: {layer_freezing: {parts: [encoder]}}`` it is frozen
    transfer, without it full transfer.

    With a ``grid`` a head is trained for each pair of learning rate and weight decay, all at once on one pass
    of the encoder, as V-JEPA 2 does (arXiv 2506.09985; ``multihead_kwargs`` of its evaluations); the schedule
    multiplies each head's rate. ``evaluation.classification`` chooses one on the documents that
    ``data.train.hold_out`` keeps from training.

    Args:
        encoder: Pixels to patch tokens.
        classes: Names of the classes.
        num_heads: Attention heads; divides the encoder's width.
        query: ``learned``: one vector for all images (AIM); ``mean``: the mean of the image's tokens
            (InternVL).
        token_norm: ``batch``: over the batch, without weights (AIM); ``layer``: LayerNorm (InternVL).
        qkv_bias: Queries and values have biases; one of the keys would cancel.
        proj_dim: Width of a projection behind the attention; null: none.
        head_norm: Normalise what the head reads over the batch.
        head_bias: The head has a bias.
        grid: ``{lr: [...], weight_decay: [...]}``; null: one head, by the optimizer's own.
    """

    part_names = ("encoder", "probe")

    def __init__(
        self,
        encoder: Encoder,
        classes: tuple[str, ...],
        num_heads: int = 12,
        query: Query = "learned",
        token_norm: TokenNorm = "batch",
        qkv_bias: bool = False,
        proj_dim: int | None = None,
        head_norm: bool = False,
        head_bias: bool = True,
        grid: dict[str, list[float]] | None = None,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.heads = [Head(*pair) for pair in product(*(grid[axis] for axis in _AXES))] if grid else []
        self.encoder = encoder
        self.probe = AttentionProbes(
            encoder.width,
            len(self.classes),
            max(1, len(self.heads)),
            num_heads,
            query,
            token_norm,
            qkv_bias,
            proj_dim,
            head_norm,
            head_bias,
        )
        self.terms = {"classification": Term(1.0, "targets", ("logits", "labels"), classification_loss)}

    @classmethod
    def refusals(cls, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the grid and the probe's sizes, and the base class's."""
        grid = settings.get("grid")
        if grid is not None and sorted(grid) != sorted(_AXES):
            yield "grid", f"has {', '.join(sorted(grid)) or 'nothing'}; give lr and weight_decay, a list each"
        for axis, values in (grid or {}).items():
            if not values or not all(math.isfinite(value) and value >= 0 for value in values):
                yield "grid", f"{axis} is {values}; give finite numbers, none below 0"
        if settings["num_heads"] < 1:
            yield "num_heads", f"is {settings['num_heads']}, must be at least 1"
        if settings["proj_dim"] is not None and not 1 <= settings["proj_dim"] <= _WIDEST:
            yield "proj_dim", f"is {settings['proj_dim']}, must be from 1 to {_WIDEST}, or null"
        yield from super().refusals(settings)

    @classmethod
    def beyond_grad_cache(cls, settings: Mapping[str, Any]) -> str | None:
        """What normalises over the batch."""
        if settings["token_norm"] == "batch":
            return "token_norm"
        return "head_norm" if settings["head_norm"] else None

    def layout(self, tokenizer: Tokenizer, rules: LayoutRules) -> Layout:
        """One image and the number of its class."""
        return Labelled(self.classes)

    def forward(self, batch: PackedBatch) -> Outputs:
        """Run the packed batch.

        Returns:
            ``logits`` [G, I, C] of the heads and ``labels`` [I].
        """
        labels_I = batch["targets"].index_select(0, batch["predicting"])
        return {"logits": self.probe(self.patch_tokens(batch)), "labels": labels_I}

    def group_settings(self, parameter_name: str) -> dict[str, float]:
        """Learning rate and weight decay of the head of a grid that a parameter belongs to."""
        if not self.heads or self.part_of(parameter_name) != "probe":
            return {}
        return self.heads[self.probe.probe_of(parameter_name)]._asdict()

    def forward_flops(self, batch: PackedBatch) -> dict[str, int]:
        """Operations by part."""
        images = len(batch["pixel_values"])
        probe = self.probe.flops(images, self.encoder.tokens_per_image)
        return {**super().forward_flops(batch), "probe": probe}
