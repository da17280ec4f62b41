"""Every experiment builds; what the config cannot check is checked here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lcl_composer import build
from lcl_composer.config import RunConfig, check_batch_divides, compose
from lcl_composer.data.tokenizer import CLIPTokenizer
from lcl_composer.errors import ConfigError
from lcl_composer.methods.build import build_model, layout_rules
from lcl_composer.methods.fast import named_blocks
from tests import runs

YAMLS = runs.ROOT / "yamls"
#: An experiment says how long it trains; what it extends does not.
EXPERIMENTS = sorted(p for p in YAMLS.rglob("*.yaml") if "max_duration" in yaml.safe_load(p.read_text()))


@pytest.fixture(autouse=True)
def _data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))


def config(**changes: Any) -> RunConfig:
    return RunConfig(**runs.settings(Path("data"), **changes))


def test_there_are_experiments():
    assert {"quickstart", "vit_b32_laion", "vit_b16_laion", "vit_b32_mmc4"} <= {p.stem for p in EXPERIMENTS}


#: A language model of the same size in place of one that would be fetched with its tokenizer.
NOT_FETCHED = [
    "model.language_model.pretrained=null",
    "model.language_model.num_hidden_layers=12",
    "tokenizer.pretrained=null",
    "tokenizer.name=clip",
]


#: An encoder of some size in place of one that a run exported.
NOT_EXPORTED = ["model.encoder.name=timm", "model.encoder.model_name=vit_tiny_patch16_224"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: str(p.relative_to(YAMLS)))
def test_every_experiment_builds_its_model(path: Path):
    wants_data = "???" in _text(path) and "streams:" not in path.read_text()
    fetched = re.search(r"language_model: \{.*pretrained:", _text(path)) is not None
    overrides = ["data.train.local=data"] * wants_data + NOT_FETCHED * fetched
    if "name: exported" in _text(path):
        size = compose(path).run.data.image_size
        overrides += [*NOT_EXPORTED, f"model.encoder.image_size={size}"]
        overrides += ["method.num_heads=3"] * ("classify" in path.stem)
    run = compose(path, overrides).run
    vocab_size = CLIPTokenizer.vocab_size if run.tokenizer.name == "clip" else 1024
    with torch.device("meta"):
        model = build_model(run, vocab_size, ("one", "another"))
    assert all(parameter.is_meta for parameter in model.parameters())
    named_blocks(run, model)
    rules = layout_rules(run, model.encoder.tokens_per_image)
    assert rules.max_tokens == run.data.max_tokens
    assert model.encoder.image_size == run.data.image_size
    optimizer = build.build_optimizer(run, model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)
    build.registry.schedulers.build(run.scheduler.spec())


def _text(path: Path) -> str:
    """An experiment with all that it extends."""
    bases = [path.parent / base for base in yaml.safe_load(path.read_text()).get("extends", [])]
    return "".join([path.read_text(), *map(_text, bases)])


@pytest.mark.parametrize(
    ("name", "tokens", "positions"),
    [("vit_b32_laion", 49, 128), ("vit_b16_laion", 196, 280), ("vit_b32_mmc4", 49, 2048)],
)
def test_recipes_are_those_of_the_release(name: str, tokens: int, positions: int):
    run = compose(YAMLS / f"pretrain/{name}.yaml", []).run
    with torch.device("meta"):
        model = build_model(run, CLIPTokenizer.vocab_size)
    assert model.encoder.tokens_per_image == tokens
    assert model.language_model.max_position_embeddings == positions
    assert len(model.generation_head.weight) == 49411


def test_weight_decay_on_matrices_only():
    model = build_model(config(), 300)
    decayed, others = build.build_optimizer(config(), model).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.2, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)] for p in decayed["params"]}
    assert {"encoder.backbone.patch_embed.proj.weight", "context_proj.weight", "pooler.k.weight"} <= found
    assert "language_model.backbone.decoder.embed_tokens.weight" in found
    assert "encoder.backbone.pos_embed" in found  # [1, K + 1, W]
    left = {names[id(p)] for p in others["params"]}
    assert {"logit_scale", "pooler.query", "encoder.backbone.cls_token"} <= left
    assert all(name in left for name in names.values() if name.endswith("bias") or "norm" in name)
    assert found | left == set(names.values())


def test_layer_decay_is_beits():
    """Of two blocks: d ** (2 - number) a block, d ** 3 what is before them, the full rate what is after."""
    run = config(layer_decay=0.5)
    model = build_model(run, 300)
    names = {id(p): n for n, p in model.named_parameters()}
    found = {
        names[id(p)]: (group["lr"] / 1e-3, group["weight_decay"])
        for group in build.build_optimizer(run, model).param_groups
        for p in group["params"]
    }
    assert found.keys() == set(names.values())
    early = ("cls_token", "pos_embed", "patch_embed.proj.weight", "norm_pre.weight")
    expected = dict.fromkeys(early, 0.125) | {"norm.weight": 1.0}
    expected |= {"blocks.0.attn.qkv.weight": 0.25, "blocks.1.mlp.fc1.bias": 0.5}
    for name, rate in expected.items():
        decayed = name.endswith(("qkv.weight", "proj.weight", "pos_embed"))
        assert found[f"encoder.backbone.{name}"] == (rate, 0.2 if decayed else 0.0), name
    assert {found[name][0] for name in found if not name.startswith("encoder.")} == {1.0}


def test_a_frozen_parameter_is_not_optimised():
    model = build_model(config(), 300)
    model.pooler.query.requires_grad_(False)
    groups = build.build_optimizer(config(), model).param_groups
    assert not any(p is model.pooler.query for group in groups for p in group["params"])


def test_batch_that_the_ranks_do_not_divide():
    with pytest.raises(ConfigError, match="4 documents do not divide over 3 ranks; use 3 or 6"):
        check_batch_divides(config(), 3)


def test_context_beyond_the_positions():
    values = config().model_dump()
    values["data"]["max_tokens"] = 65
    with pytest.raises(ConfigError, match=r"data\.max_tokens is 65, .*max_position_embeddings is 64"):
        build_model(RunConfig(**values), 300)


def test_model_follows_the_config():
    model = build_model(
        config(method={"name": "lcl", "contrastive_weight": 0.5, "logit_scale_max": 20.0}), 300
    )
    assert [term.weight for term in model.terms.values()] == [0.5, 1.0]
    assert model.terms["contrastive"].contrast.logit_scale_max == 20.0
    assert model.generation_head.out_features == 300
    assert model.pooler.num_heads == 2
