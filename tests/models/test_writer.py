"""What is written: logits against the packed forward, any batch alike, beams, draws, ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lcl_composer.data.batch import PackedBatch
from lcl_composer.errors import ConfigError
from lcl_composer.methods.caption import VQA
from lcl_composer.models.attention import PACKED
from lcl_composer.models.writer import Decoding, GumbelNoise, rooms
from tests.models.tiny import IMAGE, MAX_TOKENS, RULES, TOKENIZER, bad_batch, batch, document, tiny_method

ROWS = [
    document(IMAGE, "1 2 3 4", "9", name="a"),
    document(IMAGE, "5", "8 7", name="b"),
    document(IMAGE, "6 7", "7 7 7", name="c"),
]
NEVER = [TOKENIZER.start_of_text, *range(TOKENIZER.image_placeholder, TOKENIZER.vocab_size)]
GREEDY, BEAMS = Decoding(max_new_tokens=8), Decoding(max_new_tokens=8, beams=4)
DRAWN = Decoding(max_new_tokens=8, temperature=1.5, top_p=0.9)


def model_of(model_type: str = "opt") -> VQA:
    """Weights that are large enough for texts to depend on the image."""
    model = tiny_method(VQA, model_type, prompt="{}").eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            parameter.mul_(4)
    return model


def rows_of(model: VQA, *numbers: int) -> PackedBatch:
    return batch([ROWS[n] for n in numbers], model.layout(TOKENIZER, RULES))


def with_answer(model: VQA, number: int, answer: list[int]) -> PackedBatch:
    """A document with another answer and the same pixels."""
    question = ROWS[number].segments[1]
    row = document(IMAGE, question.text, " ".join(map(str, answer)), name=ROWS[number].id)  # type: ignore[union-attr]
    return batch([row], model.layout(TOKENIZER, RULES))


def logits_of(model: VQA, rows: PackedBatch) -> Tensor:
    """At each position that predicts, by the packed forward; tokens that are never written are impossible."""
    logits = model.generation.logits(model.language_model.read(rows, *model._image_tokens(rows)))
    logits = logits.index_select(0, rows["predicting"])
    logits[:, NEVER] = -torch.inf
    return logits


def log_likelihood(model: VQA, number: int, ids: list[int]) -> float:
    """Of a text, and of its end where that was written."""
    rows = with_answer(model, number, ids)
    targets = rows["targets"].index_select(0, rows["predicting"])[: GREEDY.max_new_tokens]
    return -float(F.cross_entropy(logits_of(model, rows)[: len(targets)], targets, reduction="sum"))


@pytest.mark.parametrize("model_type", ["opt", "gpt2", "llama", "qwen2"])
def test_cache_and_padding_give_the_logits_of_the_packed_forward(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = model_of(model_type), []
    logits = model.generation.logits
    monkeypatch.setattr(model.generation, "logits", lambda x: seen.append(logits(x)[:, 0]) or logits(x))
    written = model.write(rows_of(model, 0, 1, 2), TOKENIZER, GREEDY)
    for number, ids in enumerate(written):
        expected = logits(model(with_answer(model, number, ids or [1]))["hidden"])
        steps = range(len(ids) or 1)
        found = torch.stack([seen[step][number] for step in steps])
        torch.testing.assert_close(found, expected[: len(steps)], rtol=1e-3, atol=1e-4)
    assert model.language_model.backbone.config._attn_implementation == PACKED


def test_the_most_likely_token_is_written_each_time() -> None:
    model, expected = model_of(), []
    for _ in range(4):
        expected.append(int(logits_of(model, with_answer(model, 1, [*expected, 1]))[-2].argmax()))
    decoding = Decoding(max_new_tokens=4)
    (written,) = model.write(rows_of(model, 1), TOKENIZER, decoding)
    assert written == expected[: len(written)]
    assert len(written) == 4 or expected[len(written)] == TOKENIZER.end_of_text


@pytest.mark.parametrize("decoding", [GREEDY, BEAMS, DRAWN], ids=["greedy", "beams", "drawn"])
def test_a_batch_of_any_size_and_order_writes_the_same(decoding: Decoding) -> None:
    model = model_of()
    together = model.write(rows_of(model, 0, 1, 2), TOKENIZER, decoding)
    assert [model.write(rows_of(model, n), TOKENIZER, decoding)[0] for n in range(3)] == together
    assert model.write(rows_of(model, 2, 0), TOKENIZER, decoding) == [together[2], together[0]]
    assert len(set(map(tuple, together))) > 1


def test_beams_find_what_is_more_likely() -> None:
    model, found = model_of(), []
    for decoding in (GREEDY, Decoding(max_new_tokens=8, beams=4, length_penalty=0.0)):
        written = model.write(rows_of(model, 0, 1, 2), TOKENIZER, decoding)
        found.append([log_likelihood(model, number, ids) for number, ids in enumerate(written)])
    greedy, beams = found
    assert all(b >= g - 1e-4 for g, b in zip(greedy, beams, strict=True))
    assert greedy != beams


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([1.0, 0.0, -torch.inf, 2.0]).expand(4000, 4)
    noise = GumbelNoise(0, [str(number) for number in range(4000)])
    drawn = noise(torch.zeros(4000, 1, dtype=torch.int64), logits).argmax(1)
    shares = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(shares, logits[0].softmax(0), rtol=0, atol=0.03)


def test_draws_follow_the_seed() -> None:
    model = model_of()
    first, again, other = (
        model.write(rows_of(model, 0, 1), TOKENIZER, replace(DRAWN, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_nothing_of_the_batch_but_the_prompt_is_read() -> None:
    model = model_of()
    expected = model.write(rows_of(model, 0), TOKENIZER, BEAMS)
    assert model.write(with_answer(model, 0, [4, 5, 6, 7]), TOKENIZER, BEAMS) == expected
    assert model.write(with_answer(model, 0, [3]), TOKENIZER, BEAMS) == expected


@pytest.mark.parametrize("model_type", ["opt", "llama"])
@pytest.mark.parametrize(
    "options", [{}, {"beams": 3}, {"temperature": 1.5}], ids=["greedy", "beams", "drawn"]
)
def test_a_text_ends_at_the_last_position(
    model_type: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that never ends a text: each document's is as long as its own positions allow."""
    model = model_of(model_type)
    logits = model.generation.logits

    def endless(hidden: Tensor) -> Tensor:
        found = logits(hidden)
        found[..., TOKENIZER.end_of_text] = -torch.inf
        return found

    monkeypatch.setattr(model.generation, "logits", endless)
    rows, decoding = rows_of(model, 0, 1, 2), Decoding(max_new_tokens=500, **options)
    together = model.write(rows, TOKENIZER, decoding)
    prompts = [RULES.tokens_per_image + 1 + questions for questions in (4, 1, 2)]
    assert [len(text) for text in together] == [MAX_TOKENS - prompt + 1 for prompt in prompts]
    assert rooms(model.language_model, rows) == [len(text) for text in together]
    assert [model.write(rows_of(model, n), TOKENIZER, decoding)[0] for n in range(3)] == together
    fits = Decoding(max_new_tokens=min(map(len, together)), **options)
    if "beams" not in options:
        assert model.write(rows, TOKENIZER, fits) == [text[: fits.max_new_tokens] for text in together]


def test_documents_without_tokens_get_nothing() -> None:
    model = model_of()
    assert model.write(bad_batch(2), TOKENIZER, GREEDY) == [[], []]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"beams": 2, "temperature": 1.0}, "take one"),
        ({"beams": -1, "top_p": 1.5}, "beams=-1, top_p=1.5; need"),
        ({"beams": 10**6}, "beams=1000000; need .* beams from 1 to 1000"),
        ({"length_penalty": 1e6}, "length_penalty=1000000.0"),
        ({"length_penalty": float("nan")}, "length_penalty=nan"),
        ({"temperature": 1e-300}, "temperature=1e-300"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"max_new_tokens": -5}, "max_new_tokens=-5"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Decoding(**options)
