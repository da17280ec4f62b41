"""Multi-modal incremental training: a pretrained language model reads and predicts its own tokens."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lcl_composer.build import build_trainer
from lcl_composer.commands.check import model_sizes
from lcl_composer.config import compose
from lcl_composer.data.collate import collate, make_sample
from lcl_composer.data.document import Document, Text
from lcl_composer.data.shared_memory import clean_shared_memory
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.methods.build import build_model, build_tokenizer, layout_rules
from tests import runs
from tests.methods.whole_runs import assert_resumes_exactly, settings
from tests.models.saved import SIZES, save_language_model, save_tokenizer

TEXTS = [" ".join(runs.WORDS)] * 3


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    save_language_model(tmp_path / "lm", TEXTS)
    yield runs.write_data(tmp_path / "data", [runs.made_up(index) for index in range(30)])
    clean_shared_memory()


def values_of(data: Path, **language_model: Any) -> dict[str, Any]:
    """The recipe on tiny models: a frozen encoder, L_gen alone."""
    values = settings(data, {"name": "lcl", "contrastive_weight": 0.0})
    folder = str(data.parent / "lm")
    values["model"]["language_model"] = {"name": "transformers", "pretrained": folder, **SIZES}
    values["model"]["language_model"] |= language_model
    values["tokenizer"] = {"name": "transformers", "pretrained": folder}
    return values | {"algorithms": {"layer_freezing": {"parts": ["encoder"]}}, "evaluation": {}}


@pytest.mark.parametrize("model_type", ["opt", "llama"])
def test_text_is_predicted_as_the_pretrained_model_does(data: Path, tmp_path: Path, model_type: str) -> None:
    """Logits of its own tokens are those of transformers, head included: OPT ties it, Llama does not."""
    folder = save_language_model(tmp_path / "lm", TEXTS, model_type)
    run = compose(runs.write_yaml(tmp_path, values_of(data)), []).run
    tokenizer = build_tokenizer(run)
    model = build_model(run, tokenizer.vocab_size).eval()
    layout = model.layout(tokenizer, layout_rules(run, model.encoder.tokens_per_image))
    laid_out = layout(Document("d", "test", (Text("red blue round above"),)), np.random.default_rng(0))
    rows = collate([make_sample("d", laid_out, torch.zeros(0, 3, 16, 16, dtype=torch.uint8))])
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        outputs = model(rows)
        logits = outputs["hidden"] @ model.generation_head.weight.T  # type: ignore[operator, union-attr]
        expected = theirs(input_ids=rows["tokens"][None]).logits[0]
    torch.testing.assert_close(logits[:, : expected.shape[1]], expected, rtol=1e-4, atol=1e-5)
    assert logits.shape[1] == tokenizer.vocab_size > expected.shape[1]


@pytest.mark.parametrize(
    "tokenizer",
    [{"name": "clip"}, {"name": "bpe", "path": "x.json"}, {"name": "transformers", "pretrained": "other"}],
    ids=str,
)
def test_another_tokenizer_is_refused_in_a_line(
    data: Path, tmp_path: Path, tokenizer: dict[str, str]
) -> None:
    path = runs.write_yaml(tmp_path, values_of(data) | {"tokenizer": tokenizer})
    with pytest.raises(
        ConfigError, match=r"tokenizer: '\w+' gives other ids than the language model"
    ) as error:
        compose(path, [])
    assert len(str(error.value).splitlines()) == 1


def test_a_tokenizer_that_was_swapped_in_the_folder_is_refused(data: Path, tmp_path: Path) -> None:
    run = compose(runs.write_yaml(tmp_path, values_of(data)), []).run
    model, vocab_size = run.model.language_model, build_tokenizer(run).vocab_size
    assert model is not None
    with pytest.raises(
        ConfigError, match=r"has \d+ token ids and the tokenizer \d+, more than its structural"
    ):
        build_model(run, vocab_size + 3)


def test_check_counts_it_without_memory_for_its_weights(data: Path, tmp_path: Path) -> None:
    run = compose(runs.write_yaml(tmp_path, values_of(data)), []).run
    sizes, _, _, note = model_sizes(run)
    built = build_model(run, build_tokenizer(run).vocab_size)
    assert sizes["language_model"] == sum(p.numel() for p in built.language_model.parameters())  # type: ignore[union-attr]
    assert note == ""


@pytest.mark.slow
def test_a_run_resumes_exactly_and_with_another_tokenizer_not_at_all(data: Path, tmp_path: Path) -> None:
    values = values_of(data)
    assert_resumes_exactly(tmp_path, values)
    longer = runs.write_yaml(tmp_path, values | {"run_name": "whole", "max_duration": "7ba"})
    save_tokenizer(tmp_path / "lm", [text[::-1] for text in TEXTS], bos_token="</s>", eos_token="</s>")
    with pytest.raises(DataError, match=r"another tokenizer \(.*lm holds other ids\)"):
        build_trainer(compose(longer, []))
    shutil.rmtree(tmp_path / "lm")
    values["model"]["language_model"]["pretrained"] = values["tokenizer"]["pretrained"] = str(tmp_path / "x")
    with pytest.raises(DataError, match="cannot load"):
        build_trainer(compose(runs.write_yaml(tmp_path, values | {"run_name": "whole"}), []))
