from __future__ import annotations

import pytest
import torch

from lcl_composer.errors import DataError
from lcl_composer.models.released import from_released, to_released
from tests.models.tiny import EMBED_DIM, IMAGE_SIZE, TOKENIZER, WIDTH, tiny_model


def test_round_trip_is_exact():
    model = tiny_model()
    ours = model.state_dict()
    back = from_released(to_released(ours))
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())
    model.load_state_dict(back)


def test_released_names_and_shapes():
    released = to_released(tiny_model().state_dict())
    shapes = {
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": ((IMAGE_SIZE // 8) ** 2 + 1, WIDTH),
        "visual.transformer.resblocks.1.attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "text.transformer.resblocks.1.attn.in_proj_weight": (3 * EMBED_DIM, EMBED_DIM),
        "text.transformer.resblocks.0.attn.in_proj_bias": (3 * EMBED_DIM,),
        "text.positional_embedding": (40, EMBED_DIM),
        "pool_project.query_token": (1, 1, WIDTH),
        "lm_head.1.weight": (TOKENIZER.vocab_size, EMBED_DIM),
        "logit_scale": (),
    }
    assert {name: tuple(released[name].shape) for name in shapes} == shapes
    assert all(tensor.is_contiguous() for tensor in released.values())


def test_fused_projections_keep_the_order_query_key_value():
    ours = tiny_model().state_dict()
    fused = to_released(ours)["text.transformer.resblocks.1.attn.in_proj_weight"]
    layer = "language_model.backbone.decoder.layers.1.self_attn"
    assert torch.equal(fused, torch.cat([ours[f"{layer}.{x}_proj.weight"] for x in "qkv"]))


def test_text_projection_is_transposed():
    ours = tiny_model().state_dict()
    assert torch.equal(to_released(ours)["text.text_projection"], ours["context_proj.weight"].T)


@pytest.mark.parametrize("name", ["visual.proj", "text.transformer.resblocks.0.ln_3.weight", "transformer.w"])
def test_unknown_released_tensor(name: str):
    released = {**to_released(tiny_model().state_dict()), name: torch.zeros(2)}
    with pytest.raises(DataError, match=f"no counterpart for '{name}'"):
        from_released(released)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_another_architecture(model_type: str):
    with pytest.raises(
        DataError, match=r"no counterpart for 'language_model.*it needs a timm CLIP ViT and an OPT"
    ):
        to_released(tiny_model(model_type).state_dict())


def test_another_encoder():
    state = tiny_model().state_dict()
    state["encoder.backbone.layers.0.blocks.0.norm1.weight"] = torch.zeros(2)
    with pytest.raises(DataError, match="no counterpart for 'encoder"):
        to_released(state)
