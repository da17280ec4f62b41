from __future__ import annotations

from pathlib import Path

import pytest

from lcl_composer.config import RunConfig, check_batch_divides, compose
from lcl_composer.config.checks import effective_negatives
from lcl_composer.errors import ConfigError
from tests.config.test_compose import BASE, data_root, experiment, problems

__all__ = ["data_root"]


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    path = experiment(
        tmp_path,
        """
method:
  contrastive_wieght: 0.1
  generation_weight: "1e-4"
data:
  train: {local: "${oc.env:LCL_UNSET}", shuffle: "false"}
optimizer:
  lrr: 1e-4
  amsgrad: "no"
callbacks:
  speed_monitr: {}
  memory_monitor: {x: 1}
device_train_microbatch_size: atuo
max_duration: 3
run_name: null
""",
    )
    message = problems(path, "seeed=3")
    expected = [
        ":4: method.contrastive_wieght: unknown parameter of method 'lcl'; did you mean 'contrastive_w",
        ":5: method.generation_weight: method 'lcl' takes float, got '1e-4'",
        ":7: data.train.local: cannot resolve ${oc.env:LCL_UNSET}: the environment variable LCL_UNSET is not",
        ":7: data.train.shuffle: should be a valid boolean, got 'false'",
        ":9: optimizer.lrr: unknown parameter of optimizer 'adamw'; did you mean 'lr'?",
        ":10: optimizer.amsgrad: optimizer 'adamw' takes bool, got 'no'",
        ":12: callbacks.speed_monitr: unknown callback 'speed_monitr'; did you mean 'speed_monitor'?",
        ":13: callbacks.memory_monitor.x: unknown parameter of callback 'memory_monitor'",
        ":14: device_train_microbatch_size: should be a valid integer; or should be 'auto', got 'atuo'",
        ":15: max_duration: should be a whole number of ep, ba, sp or tok, such as 3ep or 2000ba, got 3",
        ":16: run_name: missing",
        "command line: seeed: unknown key; did you mean 'seed'?",
    ]
    lines = message.splitlines()
    assert lines[0] == f"{len(expected)} problems in the configuration:"
    places = [next((i for i, line in enumerate(lines) if text in line), None) for text in expected]
    assert places == sorted(range(1, len(lines))), message
    assert all(f"{path}:" in line for line in lines[1:-1])


def test_the_section_that_method_replaced_is_told() -> None:
    assert "write method.contrastive_weight" in problems(BASE, "loss.contrastive_weight=1")


def test_networks_that_a_method_lacks_or_does_not_take() -> None:
    assert "model.pooler: missing; the method 'lcl' needs it" in problems(BASE, "model.pooler=null")


def test_a_method_refuses_weights_that_train_nothing_or_the_opposite() -> None:
    nothing = ["method.contrastive_weight=0", "method.generation_weight=0"]
    assert "method: all weights are 0; nothing would be trained" in problems(BASE, *nothing)
    assert "method.generation_weight: is -1.0, a weight" in problems(BASE, "method.generation_weight=-1.0")


def test_a_scale_is_refused_that_would_be_clamped() -> None:
    for scale in ("0.0001", "101.0"):
        wanted = f"logit_scale_init: is {scale}, must be at least 0.001 and at most logit_scale_max, 100.0"
        assert wanted in problems(BASE, f"method.logit_scale_init={scale}")


def test_one_problem_is_one_line() -> None:
    assert problems(BASE, "seeed=3") == "command line: seeed: unknown key; did you mean 'seed'?"


def test_missing_values_are_named(tmp_path: Path) -> None:
    message = problems(experiment(tmp_path, "tokenizer: null\nmodel: {encoder: {model_name: null}}"))
    assert "experiment.yaml:2: tokenizer: missing; give it a value" in message
    assert "model.encoder.model_name: missing; encoder 'timm' needs it" in message


def test_a_mandatory_mark_must_be_filled(tmp_path: Path) -> None:
    path = experiment(tmp_path, "data: {train: {local: '???'}}")
    assert problems(path) == f"{path}:2: data.train.local: missing; give it a value"


def test_interpolations_that_lead_nowhere(tmp_path: Path) -> None:
    message = problems(
        experiment(
            tmp_path, "seed: ${nowhere}\nsave_interval: ${eval_interval}\neval_interval: ${save_interval}"
        )
    )
    assert "experiment.yaml:2: seed: cannot resolve ${nowhere}" in message
    assert "save_interval: cannot resolve ${eval_interval}: " in message


def test_a_null_that_removes_nothing_is_a_typo(tmp_path: Path) -> None:
    path = experiment(tmp_path, "optimizer: {epps: null}\nsede: null\ncallbacks:\n  memory_monitor:\n")
    assert problems(path).splitlines()[1:] == [
        f"  {path}:2: optimizer.epps: unknown key; did you mean 'eps'?",
        f"  {path}:3: sede: unknown key; did you mean 'seed'?",
        f"  {path}:5: callbacks.memory_monitor: nothing to remove; to add it write memory_monitor: {{}}",
    ]


def test_a_dotted_key_in_a_file(tmp_path: Path) -> None:
    assert "write nested mappings" in problems(experiment(tmp_path, "data.max_tokens: 64"))


def test_extends_is_for_files() -> None:
    assert "extends belongs in a file" in problems(BASE, "extends=[x.yaml]")


@pytest.mark.parametrize("name", ["os:system", "lcl_composer.models.encoder:TimmEncoder", "../x"])
def test_import_paths_are_no_names(name: str) -> None:
    assert f"unknown encoder {name!r}" in problems(BASE, f"model.encoder.name={name}")


def test_the_programs_own_parameters_are_refused() -> None:
    assert "vocab_size: is set by the program" in problems(BASE, "model.language_model.vocab_size=3")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("device_train_microbatch_size=auto", "device_train_microbatch_size: auto would change the number"),
        ("data.image_size=64", "data.image_size: is 64, but the encoder takes 224 pixels"),
        (
            "method.logit_scale_max=10",
            "at most logit_scale_max, 10",
        ),
        ("model.language_model.max_position_embeddings=77", "data.max_tokens: is 128, beyond"),
        ("global_train_batch_size=0", "should be greater than 0"),
        ("run_name=a/b", "run_name: "),
        (f"run_name={'x' * 201}", "run_name: should be a text of letters"),
        ("run_name=17", "run_name: should be a text of letters"),
        ('max_duration="8ba\\n"', "max_duration: should be a whole number"),
        ("data.train.cache_limit=10xyz", "should be a number of bytes such as 100gb, got '10xyz'"),
        ("data.train.cache_limit=-5", "data.train.cache_limit: should be greater than 0; or"),
        ("save_folder=''", "save_folder: is empty"),
        ("data.crop_scale=[0.5]", "data.crop_scale.1: missing"),
        ("load_path=${", "load_path: cannot be read: "),
        ("data.train.local=a${b", "data.train.local: cannot be read: "),
    ],
)
def test_relations_between_settings(override: str, message: str) -> None:
    assert message in problems(BASE, override)


def test_relations_are_reported_with_the_rest() -> None:
    message = problems(BASE, "device_train_microbatch_size=auto", "optimizer.lrr=1", "model.encoder.name=tim")
    assert message.startswith("3 problems")


def test_auto_microbatching_without_contrast_is_allowed() -> None:
    run = compose(BASE, ["device_train_microbatch_size=auto", "method.contrastive_weight=0"]).run
    assert run.device_train_microbatch_size == "auto"


def test_auto_microbatching_takes_contrast_with_grad_cache_only() -> None:
    auto = "device_train_microbatch_size=auto"
    assert compose(BASE, [auto, "algorithms.grad_cache={}"]).run.algorithms == {"grad_cache": {}}
    scheduled = ["method.contrastive_weight=0", "algorithms.contrastive_weight={start: 0, end: 0.1}"]
    assert "add algorithms.grad_cache" in problems(BASE, auto, *scheduled)


def test_algorithms_that_do_not_go_together() -> None:
    both = ["algorithms.patch_dropout={rate: 0.5}", "algorithms.image_resolution={start: 96, until: 1ep}"]
    assert "algorithms.patch_dropout: does not go together with image_resolution" in problems(BASE, *both)


def sized(batch: int, micro: int | None = None) -> RunConfig:
    overrides = [f"global_train_batch_size={batch}"]
    return compose(BASE, overrides + ([f"device_train_microbatch_size={micro}"] if micro else [])).run


def test_batch_must_divide_over_the_ranks() -> None:
    check_batch_divides(sized(64), 8)
    with pytest.raises(ConfigError, match="64 documents do not divide over 3 ranks; use 63 or 66"):
        check_batch_divides(sized(64), 3)
    with pytest.raises(ConfigError, match=r"use 8$"):
        check_batch_divides(sized(4), 8)


def test_effective_negatives() -> None:
    assert effective_negatives(sized(64), 4) == 64
    assert effective_negatives(sized(64, 4), 4) == 16
    assert effective_negatives(sized(64, 40), 4) == 64


def test_negatives_come_with_a_weight_or_with_a_schedule_of_it() -> None:
    without = ["global_train_batch_size=8", "method.contrastive_weight=0"]
    assert effective_negatives(compose(BASE, without).run, 2) == 0
    warm_up = "algorithms.contrastive_weight={start: 0, end: 0.1, until: 2ba}"
    assert effective_negatives(compose(BASE, [*without, warm_up]).run, 2) == 8


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        sized(64).seed = 3  # type: ignore[misc]


def test_grad_cache_keeps_the_negatives_of_the_whole_batch() -> None:
    overrides = ["global_train_batch_size=64", "device_train_microbatch_size=4", "algorithms.grad_cache={}"]
    assert effective_negatives(compose(BASE, overrides).run, 4) == 64
