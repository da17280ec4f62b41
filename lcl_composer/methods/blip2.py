"""BLIP-2, stage 1: queries read the image, and are contrasted, captioned and matched with the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.interleave import Layout, LayoutRules
from lcl_composer.data.paired import Paired
from lcl_composer.data.tokenizer import Tokenizer
from lcl_composer.errors import ConfigError
from lcl_composer.losses.gather import gather_counts, gather_rows, world_size
from lcl_composer.losses.generation import share
from lcl_composer.methods.contrast import Contrast
from lcl_composer.methods.generation import Generation
from lcl_composer.methods.hard_negatives import draw_hard_negatives
from lcl_composer.methods.method import Method, Outputs, Term
from lcl_composer.models.block_mask import to_device
from lcl_composer.models.encoder import Encoder
from lcl_composer.models.flops import language_model_flops
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.query_transformer import QueryTransformer

#: Wrong images that a text is matched with; in the paper a wrong image a text and a wrong text an image.
_WRONG = 2


class BLIP2(Method):
    """The losses of BLIP-2's first stage (arXiv 2301.12597, section 3.1), all parts from scratch, on pairs.

    ``L = contrastive_weight * L_itc + generation_weight * L_itg + matching_weight * L_itm``. Q queries z
    read an image's patch tokens; t is the text's feature.

    - L_itc: symmetric InfoNCE of ``max_q cos(z_q, t)`` over the global batch.
    - L_itg: next-token prediction of the text after the image's Q tokens.
    - L_itm: binary cross-entropy of "this text belongs to this image", over each text with its own image and
      with two wrong ones, drawn from the global batch by the softmax of the text's similarities.

    The text half of the paper's Q-Former, a BERT under three masks, is here the causal language model that
    the other methods have. For L_itc it reads the text alone; for L_itg and L_itm the image's tokens and then
    the text. So L_itm is read at ``<end_of_text>``, which has seen both, where the paper reads the queries,
    which see the text. The paper draws a wrong text for each image and a wrong image for each text; here a
    text has two wrong images, so that the host knows the lengths of all pairs without asking the device.

    Where a batch is cut into microbatches, L_itm draws from a microbatch over all ranks. GradCache restores a
    whole batch of features, not of pairs that are read anew, and is refused with L_itm.

    Args:
        encoder: Pixels to patch tokens.
        language_model: Reads texts, alone and after an image.
        vocab_size: Rows V of the generation head.
        contrastive_weight: Weight of L_itc; at 0 neither it nor what it alone reads is computed.
        generation_weight: Weight of L_itg; the same.
        matching_weight: Weight of L_itm; the same.
        num_queries: Queries Q, and tokens of an image in the language model.
        query_layers: Layers between encoder and language model, which all attend to the image; of the paper's
            12 six do.
        query_heads: Attention heads there; divides the language model's hidden size.
        logit_scale_init: Inverse temperature at the start; it is learned.
        logit_scale_max: The inverse temperature is clamped here.
        backend: Implementation of the fused generation loss; null: triton on CUDA, torch elsewhere.

    Raises:
        ConfigError: If the heads do not divide the language model's hidden size.
    """

    part_names: ClassVar[tuple[str, ...]] = ("encoder", "query_transformer", "language_model")

    def __init__(
        self,
        encoder: Encoder,
        language_model: TransformersLM,
        vocab_size: int,
        contrastive_weight: float = 1.0,
        generation_weight: float = 1.0,
        matching_weight: float = 1.0,
        num_queries: int = 32,
        query_layers: int = 6,
        query_heads: int = 8,
        logit_scale_init: float = 1 / 0.07,
        logit_scale_max: float = 100.0,
        backend: Literal["torch", "triton"] | None = None,
    ):
        super().__init__()
        width = language_model.hidden_size
        if width % query_heads:
            raise ConfigError(
                f"method.query_heads is {query_heads}, which does not divide model.language_model."
                f"hidden_size, {width}; change one of the two"
            )
        self.encoder, self.language_model, self.num_queries = encoder, language_model, num_queries
        self.query_transformer = QueryTransformer(
            encoder.width, width, num_queries, query_layers, query_heads
        )
        self.query_proj = nn.Linear(width, width, bias=False)
        self.token_proj = nn.Linear(width, width)
        self.context_norm = nn.LayerNorm(width)
        self.context_proj = nn.Linear(width, width, bias=False)
        self.match_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))
        self.generation = Generation(self, language_model, vocab_size, backend)
        self.contrast = Contrast(self, "info_nce", logit_scale_init, logit_scale_max)
        sides = ("image_features", "text_features")
        self.terms = {
            "contrastive": Term(contrastive_weight, "pairs", sides, self.contrast),
            "generation": self.generation.term(generation_weight),
            "matching": Term(
                matching_weight,
                "pairs",
                (*sides, "matched", "image_tokens", "batch"),
                self._matching,
                self.match_head,
            ),
        }

    @classmethod
    def refusals(cls, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield sizes below 1."""
        yield from super().refusals(settings)
        for name in ("num_queries", "query_layers", "query_heads"):
            if settings[name] < 1:
                yield name, f"is {settings[name]}, must be at least 1"

    @classmethod
    def contrasts(cls, settings: Mapping[str, Any]) -> bool:
        """Where images are contrasted or matched with texts of the batch."""
        return settings["contrastive_weight"] > 0 or settings["matching_weight"] > 0

    @classmethod
    def beyond_grad_cache(cls, settings: Mapping[str, Any]) -> str | None:
        """The weight of L_itm: a wrong pair is read anew, so its loss depends on more than features."""
        return "matching_weight" if settings["matching_weight"] > 0 else None

    def layout(self, tokenizer: Tokenizer, rules: LayoutRules) -> Layout:
        """The image's tokens, then its text."""
        return Paired(tokenizer, rules, predicts=True, slots=self.num_queries)

    def forward(self, batch: PackedBatch) -> Outputs:
        """Run the packed batch: each text after its image, and alone.

        Returns:
            ``image_features`` [P, Q, E] and ``text_features`` [P, E] of the P pairs, not normalised;
            ``image_tokens`` [P, Q, E]; ``matched`` [P, E], outputs at the ``<end_of_text>`` after the image;
            ``hidden`` [N, E] at the N positions that predict, after norm; ``targets`` [N] int64. In training
            P or N is 0 in what only terms without a weight read.
        """
        queries_PQE = self.query_transformer(self.patch_tokens(batch))
        after, alone = self._read_lengths(batch)
        image_tokens_PQE = self.token_proj(queries_PQE[: len(after)])
        pairs, texts = self._reading(batch, after, 0), self._reading(batch, alone, self.num_queries)
        both = {
            "tokens": torch.cat([pairs.tokens, texts.tokens]),
            "positions": torch.cat([pairs.positions, texts.positions]),
            "lengths": after + alone,
        }
        slots_S = self._slots(pairs.starts)
        outputs = self.language_model.read(cast(PackedBatch, both), image_tokens_PQE.flatten(0, 1), slots_S)
        texts_PE = outputs.index_select(0, len(pairs.tokens) + texts.ends)
        return {
            "image_features": self.query_proj(queries_PQE[: len(alone)]),
            "text_features": self.context_proj(self.context_norm(texts_PE)),
            "image_tokens": image_tokens_PQE,
            "matched": outputs.index_select(0, pairs.ends if self.needs("matching") else pairs.ends[:0]),
            **self._predicted(batch, after, outputs),
        }

    def _read_lengths(self, batch: PackedBatch) -> tuple[list[int], list[int]]:
        """Tokens of each text that a loss reads after its image, and alone; no text where no loss does."""
        lengths, matches = [length for length in batch["lengths"] if length], self.needs("matching")
        # L_itm alone reads what the language model makes of <end_of_text> after an image.
        after = [length - (not matches) for length in lengths if matches or self.needs("generation")]
        contrasted = self.needs("contrastive", "matching")
        return after, [length - self.num_queries for length in lengths if contrasted]

    def _predicted(self, batch: PackedBatch, after: list[int], outputs: Tensor) -> Outputs:
        """What L_itg reads of the outputs for texts of these lengths after their images."""
        counts = [length - self.num_queries - 1 for length in batch["lengths"] if length]
        counts = counts if self.needs("generation") else []
        predicting_N = to_device(_within(after[: len(counts)], self.num_queries, counts), outputs.device)
        return {
            "hidden": self.generation.normalise(outputs.index_select(0, predicting_N)),
            "targets": batch["targets"].index_select(0, batch["predicting"][: sum(counts)]),
        }

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Features [I, Q, E] of images [I, 3, H, W], one a query, not normalised."""
        return self.query_proj(self.query_transformer(self.encoder(pixel_values)))

    def text_features(self, batch: PackedBatch) -> Tensor:
        """Features [P, E] of the texts of P pairs, read alone, not normalised."""
        lengths = [length - self.num_queries for length in batch["lengths"] if length]
        texts = self._reading(batch, lengths, self.num_queries)
        alone: dict[str, Any] = {**texts._asdict(), "lengths": lengths}
        outputs = self.language_model.read(cast(PackedBatch, alone))
        return self.context_proj(self.context_norm(outputs.index_select(0, texts.ends)))

    def _reading(self, batch: PackedBatch, lengths: list[int], first: int) -> _Reading:
        """So many tokens of each pair, from number ``first`` on, packed; without lengths nothing."""
        device, whole = batch["tokens"].device, [length for length in batch["lengths"] if length]
        places_T = to_device(_within(whole[: len(lengths)], first, lengths), device)
        lengths_P = torch.tensor(lengths, dtype=torch.int64)
        ends_P = lengths_P.cumsum(0)
        return _Reading(
            batch["tokens"].index_select(0, places_T),
            batch["positions"].index_select(0, places_T) - first,
            to_device(ends_P - lengths_P, device),
            to_device(ends_P - 1, device),
        )

    def _slots(self, image_starts: Tensor) -> Tensor:
        """Flat positions [P * Q] of the tokens of images that start at [P]."""
        queries_Q = torch.arange(self.num_queries, device=image_starts.device)
        return (image_starts[:, None] + queries_Q).flatten()

    def _matching(
        self,
        images_PQE: Tensor,
        texts_PE: Tensor,
        matched_PE: Tensor,
        image_tokens_PQE: Tensor,
        batch: PackedBatch,
        total: Tensor,
    ) -> Tensor:
        """This rank's and microbatch's share of L_itm; the wrong images come from all ranks."""
        candidates = _gather(images_PQE, image_tokens_PQE, batch["seeds"])
        matches = [self.match_head(matched_PE)]
        count = min(_WRONG, len(candidates.seeds) - 1)
        if count > 0:
            with torch.no_grad():
                logits_PM = self.contrast.scale() * _cosines(candidates.images, texts_PE)
            wrong_PN = draw_hard_negatives(
                logits_PM, batch["seeds"], candidates.seeds, candidates.offset, count
            )
            tokens_NPQE = candidates.image_tokens.index_select(0, wrong_PN.T.flatten())
            matches.append(self.match_head(self._read_again(batch, tokens_NPQE, count)))
        logits = torch.cat(matches).float()
        labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        labels[: len(matched_PE)] = 1
        return share(F.cross_entropy(logits, labels, reduction="sum") / (1 + max(count, 0)), total)

    def _read_again(self, batch: PackedBatch, image_tokens: Tensor, times: int) -> Tensor:
        """Outputs [N * P, E] at the ends of the texts of a batch, read N times after other images.

        Args:
            batch: Its P texts.
            image_tokens: [N * P, Q, E].
            times: N.
        """
        again: dict[str, Any] = {
            "tokens": batch["tokens"].repeat(times),
            "positions": batch["positions"].repeat(times),
            "lengths": batch["lengths"] * times,
        }
        first_N1 = len(batch["tokens"]) * torch.arange(times, device=image_tokens.device)[:, None]
        slots = self._slots((first_N1 + batch["image_starts"]).flatten())
        outputs = self.language_model.read(cast(PackedBatch, again), image_tokens.flatten(0, 1), slots)
        return outputs.index_select(0, (first_N1 + batch["anchors"]).flatten())

    def forward_flops(self, batch: PackedBatch) -> dict[str, int]:
        """Operations by part; the heads are the projections of a pair, the match's and the vocabulary's."""
        width, pairs, matches = self.language_model.hidden_size, len(batch["anchors"]), 0
        after, alone = self._read_lengths(batch)
        read = after + alone
        if self.terms["matching"].weight:
            read += after * _WRONG
            matches = pairs * (1 + _WRONG)
        rows = len(after) * self.num_queries + len(alone) * (self.num_queries + 1)
        heads = 2 * rows * width**2 + 2 * matches * 2 * width
        vocabulary = self.generation.flops(batch) if self.needs("generation") else 0
        return {
            **super().forward_flops(batch),
            "query_transformer": self.query_transformer.flops(self.encoder.tokens_per_image) * pairs,
            "language_model": language_model_flops(self.language_model, read),
            "heads": heads + vocabulary,
        }


class _Reading(NamedTuple):
    """What the language model reads of P pairs, T tokens."""

    tokens: Tensor  # [T]
    positions: Tensor  # [T]
    starts: Tensor  # [P] place of each one's first token
    ends: Tensor  # [P] and of its last


class _Candidates(NamedTuple):
    """The images of all M pairs of a batch over ranks."""

    images: Tensor  # [M, Q, E] features, constants
    image_tokens: Tensor  # [M, Q, E]; their gradient goes back to the ranks they came from
    seeds: Tensor  # [M] int64
    offset: int  # the first one of this rank


def _gather(images_PQE: Tensor, tokens_PQE: Tensor, seeds_P: Tensor) -> _Candidates:
    images_PQE = images_PQE.detach()
    if world_size() == 1:
        return _Candidates(images_PQE, tokens_PQE, seeds_P, 0)
    counts = gather_counts(len(seeds_P))
    images, tokens = (
        gather_rows(rows.flatten(1), counts).unflatten(1, rows.shape[1:]) for rows in (images_PQE, tokens_PQE)
    )
    seeds = gather_rows(seeds_P[:, None], counts).squeeze(1)
    return _Candidates(images, tokens, seeds, sum(counts[: torch.distributed.get_rank()]))


def _cosines(images_MQE: Tensor, texts_PE: Tensor) -> Tensor:
    """[P, M], the greatest cosine of each text with the features of each image, in float32."""
    images, texts = (F.normalize(side.float(), dim=-1) for side in (images_MQE, texts_PE))
    return (images @ texts.T).amax(1).T


def _within(lengths: list[int], first: int, counts: list[int]) -> Tensor:
    """Flat places, on the host, of ``counts`` tokens of packed texts of these lengths, from ``first`` on."""
    lengths_P, counts_P = (torch.tensor(numbers, dtype=torch.int64) for numbers in (lengths, counts))
    before_P = lengths_P.cumsum(0) - lengths_P + first - (counts_P.cumsum(0) - counts_P)
    return torch.arange(sum(counts)) + before_P.repeat_interleave(counts_P)
