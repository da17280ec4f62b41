"""What the step benchmark counts, where that can be done by hand; `gpu.py --dry-run` runs the whole."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import recipe_steps
from benchmarks.recipe_sides import Work, documents
from benchmarks.recipe_steps import Clock, Figures, Marks, kind_of, row
from lcl_composer import kernels
from lcl_composer.data.document import Image, Text
from lcl_composer.data.tokenizer import CLIPTokenizer


def test_documents_have_the_lengths_of_the_data():
    made = list(documents(400, 100, np.random.default_rng(0)))
    pairs, pages = made[:100], made[100:]
    assert all(len(d.images) == 1 and d.images[0].floats for d in pairs)
    assert not any(image.floats for d in pages for image in d.images)
    assert np.mean([len(d.images) for d in pages]) == pytest.approx(5.65, rel=0.2)
    tokenizer = CLIPTokenizer()

    def tokens(document: Any) -> int:
        return sum(len(tokenizer.encode(s.text)) for s in document.segments if isinstance(s, Text))

    assert np.mean([tokens(d) for d in pairs]) == pytest.approx(16, rel=0.1)
    assert np.mean([tokens(d) for d in pages]) == pytest.approx(426, rel=0.2)
    assert all(isinstance(d.segments[0], Image) for d in made)


def test_a_row_has_speed_and_utilisation():
    figures = Figures(Work(4, 10, 2000, 5e12), milliseconds=20.0, peak=3 << 30)
    assert row("side", figures, 1e15) == "| side | 4 | 10 | 2,000 | 20.0 | 500 | 100,000 | 25.0% | 3.0 |"
    assert "| unknown |" in row("side", figures, None)


def test_time_between_marks_is_of_the_part_that_ends(monkeypatch: pytest.MonkeyPatch):
    moments = iter([0.0, 1.0, 4.0, 5.0, 8.0, 10.0])
    monkeypatch.setattr(recipe_steps.time, "perf_counter", lambda: next(moments))
    marks = Marks(Clock(torch.device("cpu")))
    weight = torch.ones(2, requires_grad=True)
    marks.mark("start")
    passed = marks.pass_on(2 * weight, "encoder", "pooler")  # at 1
    marks.mark("heads")  # at 4
    passed.sum().backward()  # the gradient passes at 5: the pooler's backward is done
    marks.mark("encoder")
    marks.mark("optimizer")
    assert marks.shares() == {"encoder": 0.4, "heads": 0.3, "pooler": 0.1, "optimizer": 0.2}


def test_kernels_are_told_apart():
    assert kind_of("void pytorch_flash::flash_fwd_splitkv_kernel<...>") == "attention"
    assert kind_of("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64") == "matrix products"
    assert kind_of("nvjet_hsh_192x128_64x5_2x1_v_bz_TNT") == "matrix products"
    assert kind_of("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>") == "optimizer"
    assert kind_of("Memcpy HtoD (Pinned -> Device)") == "copies"
    assert kind_of("void at::native::vectorized_layer_norm_kernel<...>") == "the rest"


def test_every_fused_loss_is_one_of_ours():
    """A kernel of a new name would be counted among the rest."""
    launched = []
    for found in pkgutil.iter_modules(kernels.__path__):
        if found.name.endswith("_triton"):
            module = importlib.import_module(f"lcl_composer.kernels.{found.name}")
            launched += [n for n, v in vars(module).items() if n.startswith("_") and hasattr(v, "arg_names")]
    assert len(launched) >= 6
    assert {name: kind_of(name) for name in launched if kind_of(name) != "fused losses"} == {}
