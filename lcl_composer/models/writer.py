"""What a language model writes: beam search and draws by transformers' ``generate``, with a KV cache."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache
from transformers.generation.configuration_utils import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.rng import sample_rng
from lcl_composer.data.tokenizer import Tokenizer, structural_ids
from lcl_composer.errors import ConfigError
from lcl_composer.models.language_model import TransformersLM

#: What transformers calls the keys and values of a prompt: a model that is handed them under the other name
#: would read none.
_CACHE = "cache" if "cache" in {f.name for f in fields(CausalLMOutputWithPast)} else "past_key_values"


#: Beyond these no text is written any better, and memory or the range of numbers ends.
MOST_BEAMS, STRONGEST_PENALTY, COLDEST, HOTTEST = 1000, 20, 0.001, 1000


@dataclass(frozen=True)
class Decoding:
    """How texts are written.

    Attributes:
        max_new_tokens: Longest text in tokens.
        beams: Hypotheses that beam search keeps; 1: the most likely token each time.
        length_penalty: A hypothesis' log-likelihood is divided by its length to this power; above 0 favours
            long texts, below 0 short ones.
        temperature: Above 0: tokens are drawn, from logits divided by this.
        top_p: Tokens are drawn from the most likely ones that have this share of the probability together.
        seed: Seed of the draws, which depend on it and on the document's id alone.

    Raises:
        ConfigError: If a value is out of range, or draws are asked of beam search.
    """

    max_new_tokens: int = 30
    beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        fits = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "beams": 1 <= self.beams <= MOST_BEAMS,
            "length_penalty": abs(self.length_penalty) <= STRONGEST_PENALTY,
            "temperature": self.temperature == 0 or COLDEST <= self.temperature <= HOTTEST,
            "top_p": 0 < self.top_p <= 1,
        }
        if wrong := [f"{name}={getattr(self, name)}" for name, fine in fits.items() if not fine]:
            raise ConfigError(
                f"{', '.join(wrong)}; need max_new_tokens >= 1, beams from 1 to {MOST_BEAMS}, length_penalty "
                f"from -{STRONGEST_PENALTY} to {STRONGEST_PENALTY}, temperature 0 or from {COLDEST} to "
                f"{HOTTEST}, 0 < top_p <= 1"
            )
        if self.beams > 1 and self.temperature:
            raise ConfigError(f"beams={self.beams} search and temperature={self.temperature} draws; take one")


class GumbelNoise(LogitsProcessor):
    """Noise on the logits, of which the largest is then a draw from their softmax (the Gumbel-max trick).

    Torch's own draws are those of a whole batch; these are each document's, in whatever batch it comes.

    Args:
        seed: Seed of the draws.
        documents: Ids of the documents, one a row.
    """

    def __init__(self, seed: int, documents: Sequence[str]):
        self._rngs = [sample_rng(seed, 0, document, "write") for document in documents]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [B, V] with the noise of this step."""
        noise_BV = np.stack([rng.gumbel(size=scores.shape[1]) for rng in self._rngs])
        return scores + torch.from_numpy(noise_BV).to(scores)


class LastPosition(LogitsProcessor):
    """Ends a text where the language model has no position for another token.

    Args:
        end: Id of ``<end_of_text>``.
        prompt: Length of the padded prompts.
        rooms: Tokens that fit behind each prompt, see :func:`rooms`.
    """

    def __init__(self, end: int, prompt: int, rooms: Sequence[int]):
        self._end, self._prompt, self._rooms = end, prompt, torch.tensor(rooms)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V], or [B * beams, V], of which the end's alone is left where a row is full."""
        full = self._rooms.repeat_interleave(len(scores) // len(self._rooms))
        full = (full <= input_ids.shape[1] - self._prompt).to(scores.device)
        ended = torch.full_like(scores, -torch.inf)
        ended[:, self._end] = 0
        return torch.where(full[:, None], ended, scores)


class _Generator(PreTrainedModel, GenerationMixin):
    """A backbone and its logits as ``generate`` wants them; the weights are the backbone's own."""

    _supports_cache_class = _supports_sdpa = True

    def __init__(self, backbone: Any, logits: Callable[[Tensor], Tensor], positions: int):
        super().__init__(copy.deepcopy(backbone.config))
        self.backbone, self.logits, self.positions = backbone, logits, positions

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the token after the last [B, 1, V], and the cache, by whichever name it comes.

        A row that has ended runs on beside the others, past the last position if need be.
        """
        if position_ids is not None:
            position_ids = position_ids.clamp(max=self.positions - 1)
        outputs = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=True,
            **{_CACHE: past_key_values if cache is None else cache},
        )
        logits: Any = self.logits(outputs.last_hidden_state[:, -1:])
        return CausalLMOutputWithPast(logits=logits, **{_CACHE: outputs[_CACHE]})


@contextmanager
def unpacked(backbone: Any) -> Iterator[None]:
    """Give a backbone the attention of transformers inside the body, which knows a cache and padding."""
    config, packed = backbone.config, backbone.config._attn_implementation
    config._attn_implementation = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = packed


def prompts_of(batch: PackedBatch) -> list[tuple[int, int]]:
    """First position of each document [D], and the one behind that which predicts the first token."""
    bounds, predicting = batch["cu_seqlens"].tolist(), batch["predicting"].tolist()
    places = []
    for start, end in pairwise(bounds):
        number = bisect_left(predicting, start)
        first = predicting[number] if number < len(predicting) else end
        places.append((start, min(first + 1, end)))
    return places


def rooms(language_model: TransformersLM, batch: PackedBatch) -> list[int]:
    """Tokens that can be written about each document [D]: the last one is predicted at the last position."""
    return [language_model.max_position_embeddings - (last - first) + 1 for first, last in prompts_of(batch)]


def write(
    language_model: TransformersLM,
    logits: Callable[[Tensor], Tensor],
    batch: PackedBatch,
    embeddings: Tensor,
    tokenizer: Tokenizer,
    decoding: Decoding,
) -> list[list[int]]:
    """Write on from what stands before the first target of each document.

    A text ends where the language model has no position for more. The prompts run once, padded on the left,
    whatever the number of beams; those of images without a question have one length and no padding.

    Args:
        language_model: In eval mode; its own packed attention comes back after.
        logits: Its outputs [..., E] to logits [..., V].
        batch: The documents.
        embeddings: [T, E] of the batch's tokens, images in their slots.
        tokenizer: Says where a text ends, and what it never holds.
        decoding: How to write.

    Returns:
        The ids of each document [D] up to ``<end_of_text>``; none for one without tokens.
    """
    places = [(number, *place) for number, place in enumerate(prompts_of(batch)) if place[0] < place[1]]
    written: list[list[int]] = [[] for _ in batch["ids"]]
    if not places:
        return written
    end = tokenizer.end_of_text
    prompts_BLE, tokens_BL, mask_BL = (
        pad_sequence([rows[first:last] for _, first, last in places], batch_first=True, padding_side="left")
        for rows in (embeddings, batch["tokens"], torch.ones_like(batch["tokens"]))
    )
    processors = _draws([batch["ids"][number] for number, _, _ in places], decoding)
    left = rooms(language_model, batch)
    if min(fitting := [left[number] for number, _, _ in places]) < decoding.max_new_tokens:
        processors.append(LastPosition(end, tokens_BL.shape[1], fitting))
    positions = language_model.max_position_embeddings
    with unpacked(language_model.backbone):
        cache: Any = _read(language_model.backbone, prompts_BLE, mask_BL, decoding.beams)
        sequences = _Generator(language_model.backbone, logits, positions).generate(
            tokens_BL,
            attention_mask=mask_BL,
            generation_config=_settings(tokenizer, decoding),
            logits_processor=processors,
            **{_CACHE: cache},
        )
    for (number, _, _), ids in zip(places, sequences[:, tokens_BL.shape[1] :].tolist(), strict=True):
        written[number] = ids[: ids.index(end)] if end in ids else ids
    return written


def _read(backbone: Any, prompts_BLE: Tensor, mask_BL: Tensor, beams: int) -> DynamicCache:
    """Keys and values of all but the last token of the prompts, once for each beam."""
    cache, mask_BL = DynamicCache(), mask_BL[:, :-1]
    positions_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
    backbone(
        inputs_embeds=prompts_BLE[:, :-1],
        attention_mask=mask_BL,
        position_ids=positions_BL,
        use_cache=True,
        **{_CACHE: cache},
    )
    if beams > 1:
        cache.batch_repeat_interleave(beams)
    return cache


def _settings(tokenizer: Tokenizer, decoding: Decoding) -> GenerationConfig:
    never = structural_ids(tokenizer) - {tokenizer.end_of_text}
    return GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty,
        suppress_tokens=sorted(never),
        bos_token_id=tokenizer.start_of_text,
        eos_token_id=tokenizer.end_of_text,
        pad_token_id=tokenizer.end_of_text,
        do_sample=False,
        use_cache=True,
    )


def _draws(names: Sequence[str], decoding: Decoding) -> LogitsProcessorList:
    """What makes the most likely token a drawn one."""
    processors = LogitsProcessorList()
    if decoding.temperature:
        processors.append(TemperatureLogitsWarper(decoding.temperature))
        if decoding.top_p < 1:
            processors.append(TopPLogitsWarper(decoding.top_p))
        processors.append(GumbelNoise(decoding.seed, names))
    return processors
