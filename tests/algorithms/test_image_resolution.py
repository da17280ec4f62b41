from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lcl_composer.algorithms.image_resolution import ImageResolution
from lcl_composer.errors import ConfigError
from lcl_composer.methods.lcl import LCL
from lcl_composer.models.encoder import TimmEncoder
from tests.algorithms.training import logged, make_trainer
from tests.models.tiny import IMAGE_SIZE, WIDTH, tiny_model


def prepared(side: int) -> LCL:
    model = tiny_model()
    resolution = ImageResolution(8, until="2ba")
    resolution.prepare(model)
    resolution.set(model, side)
    return model


def pixels() -> torch.Tensor:
    return torch.randint(256, (3, 3, IMAGE_SIZE, IMAGE_SIZE), generator=torch.manual_seed(0)).to(torch.uint8)


def test_full_size_is_bitwise_the_encoder_without_it() -> None:
    assert torch.equal(prepared(IMAGE_SIZE).train().encoder(pixels()), tiny_model().train().encoder(pixels()))


def test_evaluation_is_at_full_size() -> None:
    assert torch.equal(prepared(8).eval().encoder(pixels()), tiny_model().eval().encoder(pixels()))


def test_a_small_image_runs_on_few_patches_and_comes_back_on_the_full_grid() -> None:
    model = prepared(8).train()
    lengths: list[int] = []
    model.encoder.backbone.blocks[0].register_forward_hook(lambda m, i, o: lengths.append(o.shape[1]))
    tokens = model.encoder(pixels())
    assert lengths == [1 + model.encoder.backbone.num_prefix_tokens]
    assert tokens.shape == (3, 4, WIDTH)
    assert torch.allclose(tokens, tokens[:, :1].expand(-1, 4, -1)), "one patch stretches over the grid"


def test_patches_keep_their_place_on_the_grid() -> None:
    args = {"patch_size": 4, "embed_dim": WIDTH, "depth": 1, "num_heads": 2}
    model = tiny_model()
    model.encoder = TimmEncoder("vit_base_patch32_clip_224", image_size=16, model_args=args)
    resolution = ImageResolution(8, until="2ba")
    resolution.prepare(model)
    resolution.set(model, 8)
    raw: list[torch.Tensor] = []
    model.encoder.train().backbone.norm.register_forward_hook(lambda m, i, o: raw.append(o[:, 1:]))
    tokens = model.encoder(pixels())
    assert tokens.shape[1] == 16
    grid = raw[0].transpose(1, 2).reshape(3, WIDTH, 2, 2)
    back = F.interpolate(tokens.transpose(1, 2).reshape(3, WIDTH, 4, 4), size=(2, 2), mode="area")
    assert F.cosine_similarity(grid.flatten(1), back.flatten(1)).min() > 0.9
    corners = tokens.reshape(3, 4, 4, WIDTH)[:, [0, 0, 3, 3], [0, 3, 0, 3]]
    torch.testing.assert_close(corners, raw[0])


def test_schedule_in_whole_patches_and_parameters_of_full_size() -> None:
    trainer = make_trainer([ImageResolution(8, until="2ba")])
    trainer.fit()
    assert logged(trainer, "algorithms/image_size") == [8, 8, 16, 16]
    shapes = {n: t.shape for n, t in trainer.state.model.state_dict().items()}
    assert shapes == {n: t.shape for n, t in tiny_model().state_dict().items()}


def test_settings() -> None:
    with pytest.raises(ConfigError, match="multiple of the patch size 8"):
        ImageResolution(12, until="2ba").check(tiny_model())
    model = tiny_model()
    model.encoder = TimmEncoder("resnet18", image_size=64)
    with pytest.raises(ConfigError, match="takes a timm VisionTransformer"):
        ImageResolution(16, until="2ba").check(model)
