"""What a step keeps is counted right where it can be counted by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.step_memory import activations, saved_bytes
from lcl_composer.models.blocks import blocks_of, recompute
from tests.models.tiny import EMBED_DIM, TOKENS_PER_IMAGE, WIDTH, tiny_model


def test_a_layer_keeps_its_input_in_half_precision():
    layer = nn.Linear(8, 8)

    def kept(rows: int) -> int:
        return saved_bytes(layer, lambda: layer(torch.empty(rows, 8, requires_grad=True)))

    with FakeTensorMode(allow_non_fake_inputs=True):
        assert kept(6) - kept(4) == 2 * 8 * 2  # two rows of eight numbers of two bytes


def test_recomputed_blocks_keep_their_inputs_alone():
    found = []
    for again in (False, True):
        with torch.device("meta"):
            model = tiny_model()
        for part in model.parts.values() if again else ():
            for block in blocks_of(part):
                recompute(block)
        with FakeTensorMode(allow_non_fake_inputs=True):
            found.append(activations(model.to_empty(device="cpu")))
    plain, recomputed = found
    inputs = 2 * 4  # of two blocks, in float32 at most
    assert TOKENS_PER_IMAGE * WIDTH * inputs / 2 < recomputed.image < plain.image / 2
    assert EMBED_DIM * inputs / 2 < recomputed.token < plain.token / 2
