"""An encoder or a tokenizer from a stranger, in any form that is read: no code of theirs runs."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoTokenizer, ViTConfig, ViTModel

from lcl_composer.data.pretrained_tokenizer import TransformersTokenizer
from lcl_composer.data.tokenizer import train_bpe
from lcl_composer.errors import ConfigError, DataError, LCLError
from lcl_composer.models.encoder import TimmEncoder
from lcl_composer.models.exported import load_encoder
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.open_clip_encoder import OpenCLIPEncoder
from lcl_composer.models.text_encoder import TextEncoder
from lcl_composer.models.transformers_encoder import TransformersEncoder
from tests.security.harm import Harm

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CODE = "import os\n\nos.mkdir({!r})\n\n\nclass Evil:\n    pass\n"


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """What hostile code would make."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


@pytest.fixture(autouse=True)
def _nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks whether to run a model's code where a terminal can answer."""

    def asked(*_: Any) -> str:
        raise AssertionError("a question is asked")

    monkeypatch.setattr(builtins, "input", asked)


def vit(folder: Path) -> Path:
    ViTModel(ViTConfig(image_size=16, patch_size=8, **SIZES)).save_pretrained(folder)
    facts = {"do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return folder


def with_code(folder: Path, mark: Path, **changes: Any) -> Path:
    """Let a folder name classes of its own, in a file beside its weights."""
    folder.mkdir(exist_ok=True)
    (folder / "evil.py").write_text(CODE.format(str(mark)))
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoImageProcessor")
    path = folder / "config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    auto = {"auto_map": dict.fromkeys(names, "evil.Evil"), **changes}
    path.write_text(json.dumps({**config, **auto}))
    return folder


def encoder(folder: Path) -> Any:
    return TransformersEncoder("vit", image_size=16, pretrained=str(folder))


READERS = {
    "encoder": encoder,
    "text encoder": lambda folder: TextEncoder(64, pretrained=str(folder)),
    "language model": lambda folder: TransformersLM(64, pretrained=str(folder)),
    "tokenizer": lambda folder: TransformersTokenizer(str(folder)),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_model_type_of_their_own_is_refused(tmp_path: Path, mark: Path, reader: str) -> None:
    folder = with_code(tmp_path / "evil", mark, model_type="evil")
    auto = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(auto))
    with pytest.raises(LCLError) as caught:
        READERS[reader](folder)
    assert "\n" not in str(caught.value)


def test_a_known_type_is_built_by_transformers_own_class(tmp_path: Path, mark: Path) -> None:
    assert encoder(with_code(vit(tmp_path / "vit"), mark)).backbone.__class__ is ViTModel


def test_pickled_weights_are_refused(tmp_path: Path, mark: Path) -> None:
    folder = vit(tmp_path / "vit")
    state = ViTModel.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert encoder(folder).tokens_per_image == 4, "without code they are read"
    torch.save({**state, "x": Harm(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(LCLError) as caught:
        encoder(folder)
    assert "\n" not in str(caught.value)


def test_the_weights_of_open_clip(tmp_path: Path, mark: Path) -> None:
    vision = {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {}}
    torch.save({"state_dict": {"visual.proj": torch.zeros(2)}, "optimizer": Harm(mark)}, tmp_path / "x.pt")
    with pytest.raises(DataError, match="truncated or holds code"):
        OpenCLIPEncoder(config, weights=str(tmp_path / "x.pt"))
    shutil.move(tmp_path / "x.pt", tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(DataError, match="truncated or holds code"):
        OpenCLIPEncoder(str(tmp_path))


@pytest.mark.parametrize("name", ["hf-hub:them/evil", "local-dir:/tmp/evil", "../evil", 3])
def test_open_clip_takes_no_trunk_from_elsewhere(name: Any) -> None:
    vision = {"image_size": 16, "timm_model_name": name, "timm_model_pretrained": True}
    with pytest.raises(ConfigError, match="timm_model_name: timm has no model"):
        OpenCLIPEncoder({"embed_dim": 16, "vision_cfg": vision})


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
def test_timm_reads_no_file_that_its_arguments_name(tmp_path: Path, mark: Path, key: str) -> None:
    torch.save(Harm(mark), tmp_path / "evil.pth")
    value: Any = str(tmp_path / "evil.pth") if key.endswith(("path", "dir")) else {"file": "evil.pth"}
    with pytest.raises(ConfigError, match=f"{key} is no argument of the architecture"):
        TimmEncoder("vit_base_patch32_clip_224", 32, model_args={key: value})
    for name in ("hf-hub:them/evil", f"local-dir:{tmp_path}"):
        with pytest.raises(ConfigError, match="timm has no model"):
            TimmEncoder(name, 32)


RECIPES: dict[str, Any] = {
    "of itself": {"name": "exported", "folder": "FOLDER"},
    "with weights": {"name": "open_clip", "model": {"embed_dim": 4}, "weights": "FOLDER/model.safetensors"},
    "with a file": {"name": "timm", "model_name": "resnet18", "model_args": {"checkpoint_path": "FOLDER/x"}},
    "of code": {"name": "os.system", "command": "id"},
    "of nothing": 3,
    "of a list": ["timm"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_of_an_exported_encoder(tmp_path: Path, recipe: str) -> None:
    text = json.dumps(RECIPES[recipe]).replace("FOLDER", str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    for config in (
        f'{{"encoder": {text}, "mean": [0, 0, 0], "std": [1, 1, 1], "tokens_per_image": 1, "width": 4}}',
        "[" * 100_000,
        "[]",
        f'{{"encoder": {text}, "mean": {"9" * 5000}}}',
    ):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(LCLError, match="damaged or not an exported encoder") as caught:
            load_encoder(tmp_path)
        assert "\n" not in str(caught.value)


def test_transformers_would_run_it(tmp_path: Path) -> None:
    """The folders of these tests do what they are made for where code is trusted."""
    mark = tmp_path / "trusted"
    folder = with_code(tmp_path / "evil", mark, model_type="evil")
    with suppress(Exception):  # Evil is no config; its module has run by then
        AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert mark.exists()
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModel.from_pretrained(folder, trust_remote_code=False)


def test_a_tokenizer_of_json_is_data(tmp_path: Path) -> None:
    """``tokenizers`` reads a fixed set of parts; there is none that runs code."""
    train_bpe(["a b c"], 270, tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Custom", "module": "os", "function": "system"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(Exception, match="did not match any variant"):
        Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with pytest.raises(Exception, match=r"tokenizer|model|did not match any variant"):
        AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
