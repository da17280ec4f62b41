"""Every format is read by the library it is for, and gives our features; a damaged one is not called done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import open_clip
import pytest
import timm
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from lcl_composer.data.image import eval_transform
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.export import export_run
from lcl_composer.export.same import check_same
from lcl_composer.models.encoder import patch_tokens_of_timm
from tests import runs
from tests.export.taken import config_of, model_of, pixels, write_run

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
CLIP_VIT = {"name": "timm", "model_name": "vit_base_patch32_clip_224", "image_size": 16, "model_args": VIT}
DINO = {
    "name": "transformers",
    "model_type": "dinov2",
    "image_size": 16,
    "model_args": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8},
}
SWIN_ARGS = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
SWIN = {"name": "timm", "model_name": "swin_tiny_patch4_window7_224", "model_args": SWIN_ARGS}
GREY = {"mean": [0.5, 0.25, 0.5], "std": [0.5, 0.5, 0.25]}


def run_of(folder: Path, encoder: dict[str, Any], **changes: Any) -> tuple[Path, Any]:
    """A run folder and its model, whose pixels are normalised in a way of their own."""
    data = {**runs.settings(Path("data"))["data"], "image_size": encoder["image_size"]}
    own_size = {"image_size"} if encoder["name"] == "open_clip" else set()
    encoder = {key: value for key, value in encoder.items() if key not in own_size} | GREY
    config = config_of(encoder=encoder, data=data, **changes)
    model = model_of(config, 49411)
    return write_run(folder / "run", config, model), model


def photo(size: tuple[int, int] = (50, 40)) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


TOWER = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 1, "head_width": 12, "mlp_ratio": 2.0}
OPEN_CLIP = {"name": "open_clip", "model": {"embed_dim": 16, "vision_cfg": TOWER, "quick_gelu": True}}


@pytest.mark.parametrize(
    "encoder",
    [CLIP_VIT, {**SWIN, "image_size": 64}, {**OPEN_CLIP, "image_size": 32}],
    ids=["vit", "swin", "open_clip"],
)
@torch.no_grad()
def test_timm_and_transformers_read_the_same_folder(tmp_path: Path, encoder: dict[str, Any]) -> None:
    run, model = run_of(tmp_path, encoder)
    ours = model.encoder
    image = eval_transform(photo(), ours.image_size)[None]
    theirs = timm.create_model(
        f"local-dir:{export_run(run, tmp_path / 'timm', 'timm')}", pretrained=True
    ).eval()
    transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    torch.testing.assert_close(transform(photo())[None], ours.normalize(image), rtol=1e-5, atol=1e-5)
    tokens = patch_tokens_of_timm(theirs, transform(photo())[None])
    torch.testing.assert_close(tokens, ours(image), rtol=1e-4, atol=1e-5)
    folder = export_run(run, tmp_path / "hf", "hf")
    processor: Any = AutoImageProcessor.from_pretrained(folder)
    found = AutoModel.from_pretrained(folder).eval()(**processor(photo(), return_tensors="pt"))
    features = theirs.forward_features(transform(photo())[None])
    torch.testing.assert_close(found.last_hidden_state, features, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_transformers_own_layout(tmp_path: Path) -> None:
    run, model = run_of(tmp_path, DINO)
    folder = export_run(run, tmp_path / "out", "hf")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "dinov2"
    processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil")
    image = photo((40, 40))
    found = (
        AutoModel.from_pretrained(folder).eval()(**processor(image, return_tensors="pt")).last_hidden_state
    )
    expected = model.encoder(eval_transform(image, 16)[None])
    torch.testing.assert_close(found[:, 1:], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
@torch.no_grad()
def test_open_clip(tmp_path: Path, loss: str) -> None:
    method = {"name": "clip", "contrastive": loss}
    run, model = run_of(tmp_path, CLIP_VIT, pooler=None, method=method, tokenizer={"name": "clip"})
    folder = export_run(run, tmp_path / "out", "open_clip")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    image = preprocess(photo())[None]  # type: ignore[index,operator]
    expected = model.image_proj(model.encoder.class_tokens(eval_transform(photo(), 16)[None]))
    torch.testing.assert_close(theirs.eval().encode_image(image), expected, rtol=1e-4, atol=1e-5)
    assert theirs.context_length == 64
    assert (theirs.logit_bias is None) == (loss == "info_nce")
    if loss == "sigmoid":
        assert float(theirs.logit_bias) == float(model.logit_bias)


def test_open_clip_says_what_does_not_fit(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path, CLIP_VIT, pooler=None, method={"name": "clip"})
    with pytest.raises(ConfigError, match=r"this one reads the tokens of 'bpe', OpenCLIP those of CLIP"):
        export_run(run, tmp_path / "out", "open_clip")
    with_pooler, _ = run_of(tmp_path / "b", CLIP_VIT, method={"name": "clip"}, tokenizer={"name": "clip"})
    with pytest.raises(ConfigError, match=r"has a pooler in the place of the projection"):
        export_run(with_pooler, tmp_path / "out", "open_clip")
    encoder = export_run(run, tmp_path / "encoder")
    with pytest.raises(ConfigError, match=r"encoder holds an encoder alone; name the run"):
        export_run(encoder, tmp_path / "out", "open_clip")


@pytest.mark.slow
@torch.no_grad()
def test_onnx_takes_any_number_of_images(tmp_path: Path) -> None:
    run, model = run_of(tmp_path, {**CLIP_VIT, "model_args": {**VIT, "depth": 1}})
    folder = export_run(run, tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert json.loads((folder / "preprocessing.json").read_text())["mean"] == GREY["mean"]
    for count in (1, 5):
        images = pixels(count)
        latent, tokens = model.encode_images(images)
        found = session.run(["tokens", "latent"], {"pixel_values": model.encoder.normalize(images).numpy()})
        for one, expected in zip(found, (tokens, latent), strict=True):
            torch.testing.assert_close(torch.from_numpy(one), expected, rtol=1e-4, atol=1e-5)


def test_an_export_that_reads_back_otherwise_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = run_of(tmp_path, CLIP_VIT)
    create = timm.create_model

    def shifted(*args: Any, **kwargs: Any) -> Any:
        model = create(*args, **kwargs)
        model.norm.bias.data += 1e-3
        return model

    monkeypatch.setattr("lcl_composer.export.timm.timm.create_model", shifted)
    with pytest.raises(
        DataError, match=r"read back by timm, features differ by .*more than 1e-05; nothing is"
    ):
        export_run(run, tmp_path / "out", "timm")
    assert not list(tmp_path.glob("out*"))
    with pytest.raises(DataError, match=r"gives features of shape \(2, 3\), not \(3, 2\)"):
        check_same("x", torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(DataError, match="differ by nan"):
        check_same("x", torch.full((2,), float("nan")), torch.zeros(2))


def test_onnx_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    run, _ = run_of(tmp_path, CLIP_VIT)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnx needs onnxruntime; pip install 'lcl-composer\[onnx\]'"):
        export_run(run, tmp_path / "out", "onnx")
