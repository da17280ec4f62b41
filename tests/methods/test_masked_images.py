"""Masked modelling of images against a frozen encoder: what is seen, the loss, the target, whole runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lcl_composer.build import parameter_groups
from lcl_composer.commands.check import model_sizes
from lcl_composer.config import compose
from lcl_composer.data.batch import PackedBatch
from lcl_composer.data.masked_text import MaskedText
from lcl_composer.errors import ConfigError, DataError
from lcl_composer.export import export_encoder
from lcl_composer.methods.build import build_model
from lcl_composer.methods.masked import Masked
from lcl_composer.models.encoder import Encoder, TimmEncoder
from lcl_composer.models.language_model import TransformersLM
from lcl_composer.models.pooler import AttentivePooler
from lcl_composer.models.transformers_encoder import TransformersEncoder
from tests import runs
from tests.methods.global_batch import (
    UNEVEN,
    assert_every_parameter_gets_a_gradient,
    assert_microbatches_agree,
    assert_ranks_agree,
)
from tests.methods.test_masked import LAYOUT, TEXT, TRAILING, plain_loss, values_of
from tests.methods.whole_runs import assert_resumes_exactly, fit
from tests.models.tiny import (
    IMAGE,
    IMAGE_SIZE,
    RULES,
    TOKENIZER,
    bad_batch,
    batch,
    document,
    gradients,
    random_batch,
    tiny_encoder,
    tiny_method,
)

VIT = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
NORMALISED = {"mean": (0.1, 0.5, 0.9), "std": (0.3, 0.2, 0.5)}


def target(size: int = IMAGE_SIZE, **model_args: Any) -> TimmEncoder:
    """An encoder of another width, depth and normalisation, with much dropout in training."""
    arguments = {**VIT, "proj_drop_rate": 0.5, **model_args}
    return TimmEncoder("vit_base_patch32_clip_224", size, model_args=arguments, **NORMALISED)  # type: ignore[arg-type]


def masked_images(
    encoder: Encoder, pooler: AttentivePooler, language_model: TransformersLM, vocab_size: int, **options: Any
) -> Masked:
    """With the target."""
    return Masked(encoder, pooler, language_model, vocab_size, target(), **options)


def layout_of(model: Masked) -> MaskedText:
    layout = model.layout(TOKENIZER, RULES)
    assert isinstance(layout, MaskedText)
    return layout


IMAGES = layout_of(tiny_method(masked_images))
ROWS = [TEXT, TRAILING, document(IMAGE, "3 4", IMAGE, "9", name="two")]


def plain_image_side(model: Masked, rows: PackedBatch) -> tuple[Tensor, Tensor]:
    """Patch tokens [I, K, W] and L_image, an image and a patch at a time."""
    vit, frozen = model.encoder.backbone, model.target_encoder
    assert frozen is not None
    tokens, losses = [], []
    for image, hidden in zip(rows["pixel_values"], rows["hidden_patches"].tolist(), strict=True):
        embedded = vit.patch_embed(model.encoder.normalize(image[None]).double())
        embedded = torch.stack([model.mask_token if k in hidden else embedded[0, k] for k in range(4)])[None]
        tokens.append(vit.norm(vit.blocks(vit.norm_pre(vit._pos_embed(embedded))))[0, 1:])
        mean, std = (torch.tensor(NORMALISED[key]).double().view(3, 1, 1) for key in ("mean", "std"))
        wanted = frozen.backbone.forward_features(((image.double() / 255 - mean) / std)[None])[0, 1:]
        for k in hidden:
            ours, theirs = model.image_head(tokens[-1][k]), wanted[k]
            losses.append(1 - ours @ theirs / (ours.norm() * theirs.norm()))
    return torch.stack(tokens), torch.stack(losses).mean()


def test_losses_and_gradients_are_those_of_the_papers() -> None:
    model = tiny_method(masked_images, image_weight=0.7).double()
    rows = batch(ROWS, IMAGES)
    assert rows["hidden_patches"].shape == (3, 2)
    losses = model.loss(model(rows), rows)
    tokens, image_loss = plain_image_side(model, rows)
    text_loss = plain_loss(model, rows, tokens)
    torch.testing.assert_close(losses["image"].double(), image_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["masked"].double(), text_loss, rtol=1e-5, atol=1e-6)
    expected = text_loss + 0.7 * image_loss
    torch.testing.assert_close(losses["total"].double(), expected, rtol=1e-5, atol=1e-6)
    losses["total"].backward()
    image_side = {n: p for n, p in model.named_parameters() if p.requires_grad and "language" not in n}
    assert {"mask_token", "image_head.weight"} <= image_side.keys()
    wanted = torch.autograd.grad(expected, list(image_side.values()))
    found = gradients(model)
    for name, gradient in zip(image_side, wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_encoder_sees_nothing_of_a_hidden_patch_and_the_target_all() -> None:
    model = tiny_method(masked_images).eval()
    rows = batch([TRAILING], IMAGES)
    changed: PackedBatch = {**rows, "pixel_values": rows["pixel_values"].clone()}  # type: ignore[typeddict-item]
    for k in rows["hidden_patches"][0].tolist():
        top, left = 8 * (k // 2), 8 * (k % 2)
        changed["pixel_values"][0, :, top : top + 8, left : left + 8] ^= 255
    with torch.no_grad():
        one, other = model(rows), model(changed)
        assert not torch.equal(model.encoder(rows["pixel_values"]), model.encoder(changed["pixel_values"]))
    assert torch.equal(one["predicted_features"], other["predicted_features"])
    assert torch.equal(one["hidden"], other["hidden"])
    assert not torch.equal(one["target_features"], other["target_features"])


def test_the_encoder_is_as_ever_for_all_others() -> None:
    model, alone = tiny_method(masked_images), tiny_method(Masked)
    rows = batch(ROWS, IMAGES)
    model(rows)
    assert torch.equal(model.encoder(rows["pixel_values"]), alone.encoder(rows["pixel_values"]))
    assert model.encoder.state_dict().keys() == alone.encoder.state_dict().keys()


def test_the_target_is_frozen_in_eval_mode_and_not_optimized() -> None:
    model = tiny_method(masked_images)
    rows = batch(ROWS, IMAGES)
    model.eval()
    model.train()
    one, other = model(rows), model(rows)
    assert torch.equal(one["target_features"], other["target_features"])
    assert not one["target_features"].requires_grad
    frozen = {id(p) for p in model.parts["target_encoder"].parameters()}
    assert not frozen & {id(p) for group in parameter_groups(model) for p in group["params"]}
    model.loss(one, rows)["total"].backward()
    assert not any(name.startswith("target_encoder") for name in gradients(model))


def test_without_a_target_nothing_has_changed() -> None:
    """Neither in the weights, nor in the tokens that are hidden, nor in what the encoder sees."""
    model = tiny_method(Masked)
    parts = {name.split(".")[0] for name in model.state_dict()}
    assert parts == {"encoder", "pooler", "language_model", "generation_norm", "generation_head"}
    assert list(model.parts) == ["encoder", "pooler", "language_model"]
    assert list(model.terms) == ["masked"]
    assert layout_of(model) == LAYOUT
    rows, others = batch(ROWS, LAYOUT), batch(ROWS, IMAGES)
    assert rows["hidden_patches"].shape == (3, 0)
    assert torch.equal(rows["tokens"], others["tokens"])
    assert torch.equal(rows["targets"], others["targets"])
    assert torch.equal(model(rows)["hidden"], model(others)["hidden"])


def test_other_draws_hide_other_patches_and_the_same_draw_the_same() -> None:
    row = document(*(["1", IMAGE] * 4))
    drawn = [IMAGES(row, np.random.default_rng(seed)).hidden_patches for seed in (0, 0, 1)]
    assert all(hidden is not None and hidden.shape == (4, 2) for hidden in drawn)
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    "rows",
    [bad_batch(2), batch([TEXT], IMAGES), random_batch(4, IMAGES)],
    ids=["all bad", "text only", "mixed"],
)
def test_every_parameter_gets_a_gradient(rows: PackedBatch) -> None:
    assert_every_parameter_gets_a_gradient(tiny_method(masked_images), rows)


@pytest.mark.parametrize("microbatch_size", [1, 3])
def test_microbatches_give_the_gradient_of_the_batch(microbatch_size: int) -> None:
    assert_microbatches_agree(masked_images, microbatch_size)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", UNEVEN)
def test_uneven_ranks_have_the_gradient_of_one_process(ranks: int) -> None:
    assert_ranks_agree(masked_images, ranks)


def test_a_forward_is_what_torch_counts_and_the_target_has_no_backward() -> None:
    model, rows = tiny_method(masked_images).eval(), random_batch(6, IMAGES)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        outputs = model(rows)
        outputs["hidden"] @ model.generation_head.weight.T
    flops = model.forward_flops(rows)
    assert sum(flops.values()) == counter.get_total_flops()
    of_others = sum(flops.values()) - flops["target_encoder"]
    assert model.flops_per_batch(rows) == flops["target_encoder"] + 3 * of_others


def dinov2() -> TransformersEncoder:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    return TransformersEncoder("dinov2", IMAGE_SIZE, model_args=sizes)


@pytest.mark.parametrize(
    ("encoder", "frozen", "message"),
    [
        (tiny_encoder, lambda: target(patch_size=4), "sees 4 x 4 patches of 16 pixels, model.encoder"),
        (tiny_encoder, lambda: target(24), "sees 3 x 3 patches of 24 pixels"),
        (lambda: target(patch_size=(4, 16)), lambda: target(patch_size=(16, 4)), "1 x 4 .*4 x 1"),
        (lambda: target(patch_size=16), lambda: target(patch_size=16), "an image is one patch"),
        (lambda: target(patch_drop_rate=0.5), target, "all of its patches"),
        (dinov2, target, "model.encoder is transformers' dinov2"),
    ],
)
def test_encoders_that_do_not_fit_are_refused(
    encoder: Callable[[], Encoder], frozen: Callable[[], Encoder], message: str
) -> None:
    def method(pooler: AttentivePooler, language_model: TransformersLM, vocab_size: int) -> Masked:
        return Masked(encoder(), pooler, language_model, vocab_size, frozen())

    with pytest.raises(ConfigError, match=f"model.target_encoder: .*{message}"):
        tiny_method(method)


def test_an_encoder_of_another_library_is_a_target() -> None:
    model = tiny_method(partial(Masked, target_encoder=dinov2()))
    assert_every_parameter_gets_a_gradient(model, batch(ROWS, IMAGES))


def with_target(data: Path, component: dict[str, Any], **changes: Any) -> dict[str, Any]:
    values = values_of(data, **changes)
    values["model"]["target_encoder"] = component
    return values


RANDOM = {"name": "timm", "model_name": "vit_base_patch32_clip_224", "image_size": 16, "model_args": VIT}


@pytest.mark.parametrize(
    ("component", "changes", "message"),
    [
        (RANDOM, {"patch_mask_ratio": 1.0}, r"method\.patch_mask_ratio: is 1.0, must be above 0 and below 1"),
        (RANDOM, {"image_weight": 0.0}, r"method\.image_weight: is 0.0, must be above 0"),
        (
            RANDOM | {"image_size": 32},
            {},
            r"model\.target_encoder: takes 32 pixels, but data.image_size is 16",
        ),
        (RANDOM, {"name": "lcl"}, r"model\.target_encoder: the method 'lcl' has none"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    data: Path, tmp_path: Path, component: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    values = with_target(data, component)
    values["method"] = values["method"] | changes
    with pytest.raises(ConfigError, match=message):
        compose(runs.write_yaml(tmp_path, values), [])


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ({"patch_dropout": {"rate": 0.5}}, r"patch_dropout: changes which patches"),
        ({"layer_freezing": {"parts": ["target_encoder"]}}, r"layer_freezing\.parts: names target_encoder"),
    ],
)
def test_algorithms_that_do_not_go_with_a_target_are_refused(
    data: Path, tmp_path: Path, algorithm: dict[str, Any], message: str
) -> None:
    values = with_target(data, RANDOM) | {"algorithms": algorithm}
    with pytest.raises(ConfigError, match=rf"algorithms\.{message}"):
        compose(runs.write_yaml(tmp_path, values), [])


@pytest.mark.parametrize("setting", [{"patch_mask_ratio": 0.4}, {"image_weight": 2.0}])
def test_settings_of_images_want_a_target(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{next(iter(setting))}: .*give model.target_encoder"):
        tiny_method(Masked, **setting)


def test_check_counts_the_target_and_names_its_key(data: Path, tmp_path: Path) -> None:
    run = compose(runs.write_yaml(tmp_path, with_target(data, RANDOM)), []).run
    sizes, tokens, *_ = model_sizes(run)
    parameters = sum(p.numel() for p in build_model(run, 300).parts["target_encoder"].parameters())
    assert (sizes["target_encoder"], tokens) == (parameters, 4)
    values = with_target(data, RANDOM | {"model_name": "vit_nothing"})
    with pytest.raises(ConfigError, match=r"model\.target_encoder\.model_name: timm has no model"):
        model_sizes(compose(runs.write_yaml(tmp_path, values), []).run)


@pytest.mark.slow
def test_a_run_resumes_exactly_and_with_no_other_target(data: Path, tmp_path: Path) -> None:
    plain = compose(runs.write_yaml(tmp_path, values_of(data)), []).run
    export_encoder(build_model(plain, 300), plain, tmp_path / "target")
    values = with_target(data, {"name": "exported", "folder": str(tmp_path / "target")})
    assert_resumes_exactly(tmp_path, values)
    assert "loss/train/image" in runs.read_metrics(tmp_path, "whole")[6]
    tensors = load_file(tmp_path / "target/model.safetensors")
    tensors["cls_token"] += 1.0
    save_file(tensors, tmp_path / "target/model.safetensors")
    with pytest.raises(
        DataError, match=r"another target \(model.target_encoder's .*target holds other weights\)"
    ):
        fit(tmp_path, values | {"run_name": "cut", "max_duration": "8ba"})
