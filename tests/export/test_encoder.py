from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from lcl_composer.config import RunConfig
from lcl_composer.errors import DataError
from lcl_composer.export import export_encoder, load_encoder
from lcl_composer.methods.build import build_model
from lcl_composer.methods.lcl import LCL
from tests import runs

VOCAB_SIZE = 300


def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return RunConfig(**runs.settings(Path("data")))


@pytest.fixture(scope="module")
def model(config: RunConfig) -> LCL:
    torch.manual_seed(5)
    return build_model(config, VOCAB_SIZE).eval()


@pytest.fixture
def folder(model: LCL, config: RunConfig, tmp_path: Path) -> Path:
    return export_encoder(model, config, tmp_path / "encoder")


@torch.no_grad()
def test_exported_encoder_gives_equal_features(model: LCL, folder: Path):
    encoder, pooler = load_encoder(folder)
    assert not encoder.training
    tokens = encoder(pixels())
    latents, expected = model.encode_images(pixels())
    assert torch.equal(tokens, expected)
    assert torch.equal(pooler(tokens), latents)
    assert (encoder.width, encoder.tokens_per_image, encoder.image_size) == (32, 4, 16)


@torch.no_grad()
def test_transformers_encoder(tmp_path: Path):
    values = runs.settings(Path("data"))
    args = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    values["model"]["encoder"] = {
        "name": "transformers",
        "model_type": "dinov2",
        "image_size": 16,
        "model_args": args,
    }
    config = RunConfig(**values)
    model = build_model(config, VOCAB_SIZE).eval()
    encoder, _ = load_encoder(export_encoder(model, config, tmp_path))
    assert torch.equal(encoder(pixels()), model.encoder(pixels()))


#: One of each family of timm: class token, attention pooling, feature maps both ways round, mixers, windows.
FAMILIES = {
    "vit_base_patch32_clip_224": {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    "vit_base_patch16_siglip_224": {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 32]},
    "swin_tiny_patch4_window7_224": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    "mixer_s32_224": {},
    "levit_128s": {},
    "resnet18": {},
}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_recipe_of_the_readme_reads_every_family(tmp_path: Path, name: str):
    """As a user does who has no lcl_composer: the lines of README.md, word for word."""
    values = runs.settings(Path("data"))
    size = 64 if name != "vit_base_patch32_clip_224" else 16
    encoder = {"name": "timm", "model_name": name, "image_size": size, "model_args": FAMILIES[name]}
    values["model"]["encoder"], values["data"]["image_size"] = encoder, size
    config = RunConfig(**values)
    model = build_model(config, VOCAB_SIZE).eval()
    export_encoder(model, config, tmp_path)
    recipe = re.search(r"```python\nimport json\n(.*?)```", (runs.ROOT / "README.md").read_text(), re.DOTALL)
    assert recipe
    pixel_values = model.encoder.normalize(pixels().repeat(1, 1, size // 16, size // 16))
    names: dict[str, Any] = {"json": json, "pixel_values": pixel_values}
    exec(recipe[1].replace("runs/quickstart/encoder", str(tmp_path)), names)
    expected = model.encoder.tokens_of(model.encoder.backbone, pixel_values)
    found = model.encoder.tokens_of(names["backbone"], pixel_values)
    assert torch.equal(found, expected)
    assert names["features"].shape[0] == 3


@torch.no_grad()
def test_timm_reads_the_exported_weights(model: LCL, folder: Path, config: RunConfig):
    """As a user does who has no lcl_composer."""
    vit = timm.create_model(
        "vit_base_patch32_clip_224",
        img_size=16,
        num_classes=0,
        global_pool="",
        checkpoint_path=str(folder / "model.safetensors"),
        **config.model.encoder.spec()["model_args"],
    ).eval()
    image = model.encoder.normalize(pixels())
    assert torch.equal(vit(image)[:, 1:], model.encoder(pixels()))


def test_weights_that_are_not_finite_are_neither_written_nor_read(
    model: LCL, config: RunConfig, folder: Path, tmp_path: Path
):
    good = load_file(folder / "model.safetensors")
    save_file({**good, "cls_token": good["cls_token"] / 0}, folder / "model.safetensors")
    with pytest.raises(
        DataError, match=r"encoder: 1 of \d+ tensors are not finite \('backbone\.cls_token'\)"
    ):
        load_encoder(folder)
    lost = copy.deepcopy(model)
    lost.pooler.query.data[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"export to .*lost: 1 of \d+ tensors are not finite \('query'\)"):
        export_encoder(lost, config, tmp_path / "lost")
    assert not (tmp_path / "lost").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pooler.safetensors"])
def test_missing_and_truncated_files(folder: Path, name: str):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"encoder: damaged or not an exported encoder") as caught:
        load_encoder(folder)
    assert "\n" not in str(caught.value)
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"encoder: not an exported encoder, {name} is missing"):
        load_encoder(folder)


def test_weights_of_another_architecture(folder: Path, config: RunConfig):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"depth": 2', '"depth": 3'))
    with pytest.raises(DataError, match=r"damaged or not an exported encoder.*blocks\.2") as caught:
        load_encoder(folder)
    assert "\n" not in str(caught.value)
