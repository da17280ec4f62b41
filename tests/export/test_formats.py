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
from lcl_composer.data.interleave import LayoutRules
from lcl_composer.data.tokenizer import CLIPTokenizer
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.evaluation.texts import text_features
from lcl_composer.export import export_run
from lcl_composer.export.same import check_same
from lcl_composer.export.timm import preprocessing
from lcl_composer.models.encoder import patch_tokens_of_timm
from lcl_composer.models.open_clip_encoder import OpenCLIPEncoder
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


QUICK_VIT = {**CLIP_VIT, "model_args": {**VIT, "act_layer": "quick_gelu"}}


def opt(**model_args: Any) -> dict[str, Any]:
    """The tiny experiment's language model with other fields of OPT's config."""
    return {**runs.settings(Path("data"))["model"]["language_model"], "model_args": model_args}


def clip_run(folder: Path, encoder: dict[str, Any], language_model: dict[str, Any], **method: str) -> Any:
    """A run of the method clip that OpenCLIP may have, and its model."""
    changes = {"pooler": None, "tokenizer": {"name": "clip"}, "language_model": language_model}
    return run_of(folder, encoder, method={"name": "clip", **method}, **changes)


@pytest.mark.parametrize(
    ("encoder", "language_model", "loss"),
    [
        (CLIP_VIT, opt(), "info_nce"),
        (CLIP_VIT, opt(ffn_dim=96), "sigmoid"),
        (QUICK_VIT, opt(activation_function="quick_gelu"), "info_nce"),
    ],
    ids=["plain", "sigmoid", "quick_gelu"],
)
@torch.no_grad()
def test_open_clip(
    tmp_path: Path, encoder: dict[str, Any], language_model: dict[str, Any], loss: str
) -> None:
    run, model = clip_run(tmp_path, encoder, language_model, contrastive=loss)
    folder = export_run(run, tmp_path / "out", "open_clip")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    image = preprocess(photo())[None]  # type: ignore[index,operator]
    expected = model.image_proj(model.encoder.class_tokens(eval_transform(photo(), 16)[None]))
    torch.testing.assert_close(theirs.eval().encode_image(image), expected, rtol=1e-4, atol=1e-5)
    assert theirs.context_length == 64
    layout = model.layout(CLIPTokenizer(), LayoutRules(tokens_per_image=4, max_tokens=64))
    texts = ["a photo of a cat", "two dogs " * 60]
    ids = open_clip.get_tokenizer("ViT-B-32", context_length=64)(texts)
    found = theirs.encode_text(ids)
    torch.testing.assert_close(found, text_features(model, layout, texts), rtol=1e-4, atol=1e-5)
    assert (theirs.logit_bias is None) == (loss == "info_nce")
    if loss == "sigmoid":
        assert float(theirs.logit_bias) == float(model.logit_bias)


@pytest.mark.parametrize("format", ["open_clip", "released"])
@pytest.mark.parametrize(
    ("encoder", "language_model", "message"),
    [
        (CLIP_VIT, opt(activation_function="relu"), r"the image tower has GELU\w*, the text tower relu"),
        (CLIP_VIT, opt(activation_function="gelu_new"), "the text tower gelu_new; OpenCLIP has GELU in both"),
        (QUICK_VIT, opt(), "the image tower has QuickGELU, the text tower gelu; .*or QuickGELU in both"),
        (CLIP_VIT, opt(do_layer_norm_before=False), "has do_layer_norm_before False, OpenCLIP's True"),
        (CLIP_VIT, opt(enable_bias=False), "has enable_bias False, OpenCLIP's True"),
    ],
    ids=["relu", "gelu_new", "quick", "norm_after", "no_bias"],
)
def test_towers_that_open_clip_does_not_have(
    tmp_path: Path, format: str, encoder: dict[str, Any], language_model: dict[str, Any], message: str
) -> None:
    if format == "open_clip":
        run, _ = clip_run(tmp_path, encoder, language_model)
    else:
        run, _ = run_of(tmp_path, encoder, language_model=language_model)
    with pytest.raises(ConfigError, match=message) as caught:
        export_run(run, tmp_path / "out", format)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("method", "format", "damaged", "what"),
    [
        ("clip", "open_clip", "token_embedding.weight", "text features"),
        ("clip", "open_clip", "visual.proj", "image features"),
        ("clip", "open_clip", "logit_scale", "logit_scale"),
        ("lcl", "released", "text.text_projection", "text features"),
        ("lcl", "released", "pool_project.query_token", "latents"),
        ("lcl", "released", "lm_head.1.weight", "logits"),
        ("lcl", "encoder", "v.weight", "latents"),
    ],
)
def test_every_part_that_is_written_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, format: str, damaged: str, what: str
) -> None:
    """A tensor that reaches the file otherwise than it is in the run."""
    from safetensors.torch import save_file

    run, _ = clip_run(tmp_path, CLIP_VIT, opt()) if method == "clip" else run_of(tmp_path, CLIP_VIT)

    def save(tensors: dict[str, Any], *args: Any) -> None:
        noisy = {n: t + 1e-3 * torch.randn_like(t) if n == damaged else t for n, t in tensors.items()}
        save_file(noisy, *args)

    for module in ("open_clip", "own", "encoder"):
        monkeypatch.setattr(f"lcl_composer.export.{module}.save_file", save)
    with pytest.raises(DataError, match=rf"{what} differ by .*; nothing is written"):
        export_run(run, tmp_path / "out", format)
    assert not list(tmp_path.glob("out*"))


def test_released_with_quick_gelu(tmp_path: Path) -> None:
    run, model = run_of(tmp_path, QUICK_VIT, language_model=opt(activation_function="quick_gelu", ffn_dim=64))
    folder = export_run(run, tmp_path / "out", "released")
    read = OpenCLIPEncoder(str(folder / "model_config.json"), str(folder / "state_dict.safetensors"), **GREY)
    with torch.no_grad():
        torch.testing.assert_close(read(pixels()), model.encoder(pixels()), rtol=1e-4, atol=1e-5)
    assert json.loads((folder / "model_config.json").read_text())["text_cfg"]["mlp_ratio"] == 2


def test_other_pixels_are_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each library is told a way to size that is not ours."""
    run, _ = run_of(tmp_path, CLIP_VIT)
    squashed = lambda encoder: {**preprocessing(encoder), "crop_mode": "squash"}  # noqa: E731
    monkeypatch.setattr("lcl_composer.export.timm.preprocessing", squashed)
    for format in ("timm", "hf"):
        with pytest.raises(DataError, match=r"pixels differ by"):
            export_run(run, tmp_path / "out", format)


def test_the_tolerance_is_relative_to_the_largest() -> None:
    """Features of any scale: 1e-4 of 0.01 is no rounding."""
    check_same("x", torch.full((2,), 0.01 + 5e-8), torch.full((2,), 0.01))
    with pytest.raises(DataError, match=r"differ by 1\.0e-04"):
        check_same("x", torch.full((2,), 0.01 + 1e-6), torch.full((2,), 0.01))


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
