"""Settings of memory and speed that do not go together are one line each."""

from __future__ import annotations

import pytest

from lcl_composer.config import compose
from lcl_composer.config.trial import Device
from tests.config.test_compose import YAMLS
from tests.config.test_trial import QUICKSTART, problem

FSDP = "parallelism.fsdp={reshard_after_forward: true}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tf32=true", "precision=fp32"], "tf32: rounds products to ten bits, and precision is fp32"),
        (["compile={parts: [encodr]}"], "compile.parts: the method 'lcl' has no part 'encodr'; did you mean"),
        (["compile={parts: []}"], "compile.parts: List should have at least 1 item"),
        (["compile={parts: [encoder], backend: tvm}"], "compile.backend: should be 'inductor'"),
        (["activation_checkpointing={parts: [encoder], every: 0}"], "activation_checkpointing.every: should"),
        (
            ["method={name: clip}", "model.pooler=null", "compile={parts: [pooler]}"],
            "compile.parts: names pooler, and model.pooler is null",
        ),
        (
            [FSDP, "device_train_microbatch_size=auto", "algorithms.grad_cache={}"],
            "auto does not go with",
        ),
        ([FSDP, "precision=amp_fp16"], "precision: amp_fp16 does not go with parallelism.fsdp"),
        (
            ["parallelism.fsdp={param_dtype: bf16}", "precision=fp32"],
            "parallelism.fsdp.param_dtype: bf16 needs precision amp_bf16",
        ),
        (
            [FSDP, "algorithms.feature_cache={folder: x}", "algorithms.layer_freezing={parts: [encoder]}"],
            "algorithms.feature_cache: runs the encoder by itself, which does not go with parallelism.fsdp",
        ),
        ([FSDP, "callbacks.optimizer_monitor={}"], "callbacks.optimizer_monitor: reads each rank's"),
        ([FSDP, "algorithms.low_precision_layernorm={}"], "algorithms.low_precision_layernorm: replaces"),
        (["device_train_microbatch_tokens=4096"], "would change the number of negatives from batch to batch"),
        (
            ["device_train_microbatch_tokens=64", "algorithms.grad_cache={}"],
            "device_train_microbatch_tokens: is 64, below data.max_tokens 192",
        ),
        (
            [
                "device_train_microbatch_tokens=4096",
                "device_train_microbatch_size=4",
                "algorithms.grad_cache={}",
            ],
            "device_train_microbatch_tokens: and device_train_microbatch_size are both set",
        ),
        (
            ["device_train_microbatch_tokens=4096", "method={name: classify}"],
            "device_train_microbatch_tokens: would change the loss: method.token_norm looks at",
        ),
    ],
)
def test_what_does_not_go_together(overrides: list[str], message: str) -> None:
    found = problem(*overrides, device="gpu")
    assert message in found
    assert all(": " in line or "problems in" in line for line in found.splitlines())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tf32=true", "tf32: needs a GPU"),
        ("method.backend=triton", "method.backend: triton needs a GPU and this run has none; set torch or"),
        ("parallelism.fsdp={reduce_dtype: bf16}", "parallelism.fsdp.reduce_dtype: bf16 needs a GPU"),
    ],
)
def test_what_needs_a_gpu(override: str, message: str) -> None:
    assert message in problem(override)


def test_what_goes_together() -> None:
    device: Device = "gpu"
    settings = ["tf32=true", "parallelism.fsdp={param_dtype: bf16}", "compile={parts: [encoder]}"]
    settings += ["device_train_microbatch_tokens=4096", "algorithms.grad_cache={}"]
    run = compose(QUICKSTART, settings, device).run
    assert run.parallelism.fsdp is not None
    assert run.parallelism.fsdp.reshard_after_forward
    assert run.compile is not None
    assert run.compile.backend == "inductor"
    assert not compose(YAMLS / "quickstart.yaml", []).run.tf32


@pytest.mark.parametrize(
    "override",
    [
        "method.logit_scale_max={}",
        "algorithms.contrastive_weight={{start: {}, end: 1.0}}",
        "algorithms.gradient_clipping={{clipping_type: norm, clipping_threshold: {}}}",
        "optimizer.betas=[0.9, {}]",
        "scheduler.alpha_f={}",
        "model.encoder.model_args.drop_rate={}",
        "callbacks.loss_guard={{factor: {}}}",
        "data.crop_scale=[{}, 1.0]",
        "data.train.hold_out={}",
        "dist_timeout={}",
    ],
)
def test_no_setting_is_nan(override: str) -> None:
    found = problem(override.format(".nan"))
    assert "\n" not in found
    assert "finite number" in found
    assert found.startswith(f"command line: {override.partition('=')[0].removesuffix('.drop_rate')}")


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "1e400"])
def test_no_setting_is_infinite(number: str) -> None:
    found = problem(f"method.contrastive_weight={number}", f"dist_timeout={number}")
    assert found.count("finite number") == 2
