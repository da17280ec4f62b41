from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from lcl_composer.errors import ConfigError
from lcl_composer.models.language_model import TransformersLM
from tests.models.tiny import EMBED_DIM, MAX_TOKENS, TOKENIZER, tiny_language_model

ARCHITECTURES = ["opt", "gpt2", "llama", "qwen2"]
LENGTHS = [3, 1, 9, 4]


def packed_inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, TOKENIZER.vocab_size, (sum(LENGTHS),), generator=generator)
    return tokens, torch.cat([torch.arange(length) for length in LENGTHS])


def seeded(model_type: str = "opt", **changes: Any) -> TransformersLM:
    torch.manual_seed(0)
    return tiny_language_model(model_type, **changes).eval()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_packed_equals_one_document_at_a_time(model_type: str):
    """And one document equals transformers' own attention, so positions and masks mean the same."""
    model = seeded(model_type)
    plain = AutoModel.from_config(deepcopy(model.backbone.config), attn_implementation="sdpa").eval()
    plain.load_state_dict(model.backbone.state_dict())
    tokens, positions = packed_inputs()
    with torch.no_grad():
        packed = model(model.embed(tokens), positions, LENGTHS)
        for found, document in zip(packed.split(LENGTHS), tokens.split(LENGTHS), strict=True):
            expected = plain(input_ids=document[None], use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_gradient_reaches_every_parameter_and_every_token(model_type: str):
    """OPT's default padding index would drop the gradient of token 1."""
    model = seeded(model_type).train()
    tokens, positions = torch.arange(6), torch.arange(6)
    model(model.embed(tokens), positions, [6]).square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    gradient = model.backbone.get_input_embeddings().weight.grad
    assert (gradient[:6].abs().amax(1) > 0).all()
    assert (gradient[6:] == 0).all()


def test_grouped_query_attention():
    model = seeded("llama", model_args={"num_key_value_heads": 1})
    assert model.backbone.layers[0].self_attn.k_proj.out_features == EMBED_DIM // 2
    tokens, positions = packed_inputs()
    with torch.no_grad():
        packed = model(model.embed(tokens), positions, LENGTHS)
        alone = model(model.embed(tokens[4:13]), positions[4:13], [9])
    torch.testing.assert_close(packed[4:13], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["mistral", "gemma2"])
def test_sliding_window_and_softcap(model_type: str):
    """Gemma 2 has a softcap too, and the window in every other layer."""
    model = seeded(
        model_type,
        model_args={"sliding_window": 4, "head_dim": 16, "query_pre_attn_scalar": 16}
        if model_type == "gemma2"
        else {"sliding_window": 4},
    )
    plain = AutoModel.from_config(deepcopy(model.backbone.config), attn_implementation="eager").eval()
    plain.load_state_dict(model.backbone.state_dict())
    tokens, positions = packed_inputs()
    with torch.no_grad():
        packed = model(model.embed(tokens), positions, LENGTHS)
        for found, document in zip(packed.split(LENGTHS), tokens.split(LENGTHS), strict=True):
            expected = plain(input_ids=document[None], use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_off_unless_asked_for():
    tokens, positions = packed_inputs()
    for model_type in ARCHITECTURES:
        model = seeded(model_type).train()
        assert torch.equal(*(model(model.embed(tokens), positions, LENGTHS) for _ in range(2)))
    model = seeded(model_args={"dropout": 0.5}).train()
    assert not torch.equal(*(model(model.embed(tokens), positions, LENGTHS) for _ in range(2)))


def test_opt_is_the_released_text_tower():
    model = seeded()
    assert not model.has_final_norm
    assert seeded("gpt2").has_final_norm
    positions = model.backbone.decoder.embed_positions.weight
    assert positions.shape == (MAX_TOKENS + 2, EMBED_DIM)
    assert (positions[:2] == 0).all()
    assert (positions[2:] != 0).all()


@pytest.mark.parametrize(
    ("model_type", "model_args", "message"),
    [
        ("optt", {}, "transformers has no 'optt'"),
        (
            "opt",
            {"attention_dropot": 0.0},
            "opt has no field 'attention_dropot'; did you mean 'attention_dropout'",
        ),
        ("opt", {"hidden_size": 64}, "hidden_size is set by model.language_model itself"),
        ("opt", {"vocab_size": 64}, "vocab_size is set"),
        ("bloom", {}, "'bloom' takes no attention function"),
    ],
)
def test_errors(model_type: str, model_args: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        tiny_language_model(model_type, model_args=model_args)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"model_type": "opt", "hidden_size": 33},
            r"hidden_size: 33 is no multiple of model\.language_model\.num_attention_heads, 2; change one",
        ),
        (
            {"model_type": "llama", "num_attention_heads": 3},  # transformers 5 refuses it by itself
            r"hidden_size: 32 is no multiple of .*heads, 3;|hidden size \(32\) is not a multiple",
        ),
        ({"model_type": "gpt2", "num_attention_heads": 3}, r"hidden_size: 32 is no multiple of .*heads, 3;"),
        (
            {"model_type": "llama", "model_args": {"num_key_value_heads": 3}},
            "2 is no multiple of num_key_val",
        ),
        (
            {"model_type": "llama", "hidden_size": 30},
            r"hidden_size: 30 over .*heads, 2, is odd|even rotary dimension, but got .head_dim.=15",
        ),
        ({"num_hidden_layers": 0}, r"model\.language_model\.num_hidden_layers: is 0, must be at least 1"),
        ({"num_attention_heads": 0}, r"model\.language_model\.num_attention_heads: is 0"),
        ({"model_args": {"activation_function": "gelo"}}, "transformers cannot build 'opt' so: .*gelo"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes: dict[str, Any], message: str) -> None:
    given = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, **sizes}
    with torch.device("meta"), pytest.raises(ConfigError, match=message) as caught:
        TransformersLM(64, **given)
    assert "attention function" not in str(caught.value)


def test_heads_of_a_width_of_their_own_need_not_divide() -> None:
    with torch.device("meta"):
        model = TransformersLM(64, "qwen3", 32, 1, 3, model_args={"head_dim": 16})
    assert model.hidden_size == 32


def test_attention_dropout_is_refused():
    model = seeded(model_args={"attention_dropout": 0.1}).train()
    tokens, positions = packed_inputs()
    with pytest.raises(ConfigError, match="no dropout"):
        model(model.embed(tokens), positions, LENGTHS)


@pytest.fixture
def saved_opt(tmp_path: Path) -> Path:
    """A folder as save_pretrained writes it: 59 tokens, padding index and dropout as OPT has by default."""
    torch.manual_seed(3)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": MAX_TOKENS}
    config = {"vocab_size": 59, "hidden_size": EMBED_DIM, "word_embed_proj_dim": EMBED_DIM, "ffn_dim": 64}
    from transformers import OPTConfig, OPTModel

    OPTModel(OPTConfig(**config, **sizes)).save_pretrained(tmp_path / "opt")
    return tmp_path / "opt"


def test_pretrained(saved_opt: Path):
    model = tiny_language_model(pretrained=str(saved_opt)).train()
    plain = AutoModel.from_pretrained(saved_opt).eval()
    assert model.has_final_norm
    embedding = model.backbone.get_input_embeddings()
    assert embedding.weight.shape == (TOKENIZER.vocab_size, EMBED_DIM)
    assert torch.equal(embedding.weight[:59], plain.get_input_embeddings().weight)
    tokens, positions = torch.arange(20), torch.arange(20)
    found = model(model.embed(tokens), positions, [20])  # in training mode: no dropout
    with torch.no_grad():
        expected = plain(input_ids=tokens[None]).last_hidden_state[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    assert embedding.weight.grad[1].abs().max() > 0, "the padding index drops token 1's gradient"


def test_pretrained_takes_model_args(saved_opt: Path):
    model = tiny_language_model(pretrained=str(saved_opt), model_args={"dropout": 0.5}).train()
    tokens = torch.arange(6)
    assert not torch.equal(*(model(model.embed(tokens), tokens, [6]) for _ in range(2)))
    with pytest.raises(ConfigError, match="no field 'droput'"):
        tiny_language_model(pretrained=str(saved_opt), model_args={"droput": 0.5})


def test_pretrained_errors(saved_opt: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"hidden_size=64 \(weights: 32\)"):
        tiny_language_model(pretrained=str(saved_opt), hidden_size=64)
    with pytest.raises(ConfigError, match=r"pretrained: cannot load .*nowhere"):
        tiny_language_model(pretrained=str(tmp_path / "nowhere"))
