from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lcl_composer.config import compose
from lcl_composer.config.trial import Device
from lcl_composer.errors import ConfigError
from tests.config.test_compose import YAMLS
from tests.runs import made_up, settings, write_data, write_yaml

QUICKSTART = YAMLS / "quickstart.yaml"


def problem(*overrides: str, device: Device = "cpu") -> str:
    with pytest.raises(ConfigError) as caught:
        compose(QUICKSTART, overrides, device)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_duration=3000tok", "scheduler: does not go with max_duration 3000tok: Cannot use warmup"),
        ("max_duration=1dur", "max_duration: should be a whole number of ep, ba, sp or tok"),
        ("max_duration=0.5ep", "max_duration: should be a whole number"),
        ("max_duration=3sec", "max_duration: should be a whole number"),
        ("max_duration=0ba", "max_duration: should be a whole number"),
        ("save_interval=0.5ep", "save_interval: should be a whole number of ep, ba, sp, tok or sec, or a sh"),
        ("eval_interval=2iter", "eval_interval: should be"),
        ("seed=-1", "seed: should be greater than or equal to 0"),
        ("seed=4294967296", "seed: should be less than 4294967296"),
        ("save_num_checkpoints_to_keep=-5", "save_num_checkpoints_to_keep: should be greater than 0; or"),
        ("precision=amp_bf16", "precision: amp_bf16 needs a GPU"),
        ("scheduler.t_warmup=3sec", "scheduler: does not go with max_duration 7ep: Wall clock time"),
        ("scheduler.t_warmup=0.5ep", "scheduler 'cosine_with_warmup': value 0.5 is not an integer"),
        ("optimizer.lr=-1.0", "optimizer: optimizer 'adamw': Invalid learning rate"),
        ("callbacks.retrieval={every: 3x}", "callbacks.retrieval: callback 'retrieval': Invalid time string"),
        ("algorithms.ema={half_life: 3x}", "algorithms.ema: algorithm 'ema': Invalid time string: 3x"),
        ("scheduler.alpha_f=-1.0", "scheduler: makes the learning rate negative, -1 times optimizer.lr"),
        (
            "scheduler={name: constant, alpha: -0.5}",
            "scheduler: makes the learning rate negative, -0.5 times",
        ),
        (
            "scheduler={name: polynomial_with_warmup, t_warmup: 2ba, power: -1.0}",
            "scheduler: does not go with max_duration 7ep: 0.0 cannot be raised to a negative power",
        ),
        ("data.train.generate.documents=0", "data.train.generate: shapes: documents=0, "),
        ("scheduler.t_warmup=-4ba", "scheduler.t_warmup: must not be negative"),
        ("scheduler.t_max=100ba", "scheduler: does not go with max_duration 7ep: t_max"),
        ("optimizer={name: adam, capturable: true}", "optimizer: with these settings a step fails: If ca"),
        ("optimizer={name: adam, differentiable: true}", "optimizer: with these settings a step fails: a l"),
        ("callbacks.speed_monitor.window_size=0", "speed_monitor.window_size: is 0, must be at least 1"),
        ("callbacks.optimizer_monitor={batch_log_interval: 0}", "batch_log_interval: is 0, must be at least"),
        ("callbacks.runtime_estimator={skip_batches: -1}", "skip_batches: is -1, must be at least 0"),
        ("loggers.tensorboard={flush_interval: 0}", "tensorboard.flush_interval: is 0, must be at least 1"),
        (
            "callbacks.retrieval={every: 0ba}",
            "callbacks.retrieval: callback 'retrieval': every '0ba' must be",
        ),
        ("callbacks.attention_maps={images: 0}", "images 0 must be at least 1"),
        ("callbacks.feature_health={collapse_share: 2.0}", "collapse_share 2.0 a share"),
        (
            "callbacks.early_stopper={monitor: contrastive, patience: 1sec}",
            "callbacks.early_stopper: callback 'early_stopper': patience '1sec' must be in ep or ba",
        ),
        (
            "algorithms.contrastive_weight={start: 0, end: 1, until: 5sec}",
            "until '5sec' must be in ep, ba, sp",
        ),
        (
            "algorithms.ema={begin: 5ba, update_interval: 2ba}",
            "begin '5ba' must be a multiple of update_inte",
        ),
        ("data.eval=null", "evaluation.retrieval: searches held-out documents; set data.eval"),
    ],
)
def test_what_composer_would_refuse_is_one_line(override: str, message: str) -> None:
    found = problem(override)
    assert message in found
    assert "\n" not in found


def test_all_at_once() -> None:
    found = problem(
        "max_duration=1dur",
        "seed=-1",
        "precision=amp_bf16",
        "optimizer.lr=-1.0",
        "callbacks.retrieval={every: 3x}",
        "sede=1",
        "evaluation.probe.train=null",
    )
    keys = (
        "seed",
        "max_duration",
        "precision",
        "optimizer",
        "callbacks.retrieval",
        "sede",
        "evaluation.probe",
    )
    assert found.startswith(f"{len(keys)} problems in the configuration:\n")
    assert not [key for key in keys if f": {key}" not in found]


def test_microbatches_found_by_trying_need_a_gpu() -> None:
    overrides = ["device_train_microbatch_size=auto", "algorithms.grad_cache={}"]
    assert "auto needs a GPU" in problem(*overrides)
    overrides.append("precision=amp_bf16")
    assert compose(QUICKSTART, overrides, "gpu").run.precision == "amp_bf16"


def test_without_a_device_nothing_is_tried() -> None:
    assert compose(QUICKSTART, ["precision=amp_bf16", "optimizer.lr=-1.0"]).notes == []


@pytest.mark.parametrize(
    ("changes", "highest"),
    [
        ({"max_duration": "8ba", "scheduler": {"t_warmup": "40ba"}}, "20.0%"),
        ({"max_duration": "2ep", "scheduler": {"t_warmup": "40ba"}}, "40.0%"),
        ({"max_duration": "64sp", "scheduler": {"t_warmup": "640sp"}}, "10.0%"),
        ({"max_duration": "2ep", "scheduler": {"t_warmup": "8ep"}}, "25.0%"),
        ({"max_duration": "8ba", "scheduler": {"t_warmup": "2ba"}}, None),
        ({"max_duration": "2ep", "scheduler": {"t_warmup": "0.1dur"}}, None),
        ({"max_duration": "8ba", "scheduler": {"name": "constant"}}, None),
        ({"max_duration": "8ba", "scheduler": {"name": "linear", "alpha_i": 0.5}}, None),
    ],
)
def test_a_warmup_longer_than_the_run_is_noted(
    tmp_path: Path, changes: dict[str, Any], highest: str | None
) -> None:
    """On 34 documents, 8 batches of 4 an epoch."""
    changes["scheduler"] = {"name": "cosine_with_warmup"} | changes["scheduler"]
    data = write_data(tmp_path / "data", [made_up(index) for index in range(34)])
    notes = compose(write_yaml(tmp_path, settings(data, **changes)), [], "cpu").notes
    assert [highest is not None] == [f"comes to {highest} of optimizer.lr" in note for note in notes or [""]]


def test_an_epoch_of_unknown_length_is_not_judged(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_duration": "2ep", "scheduler": {"name": "linear_with_warmup"}}
    changes["scheduler"]["t_warmup"] = "40ba"
    assert compose(write_yaml(tmp_path, settings(tmp_path / "absent", **changes)), [], "cpu").notes == []


@pytest.mark.parametrize(
    ("max_duration", "ema", "share"),
    [
        ("8ba", {}, "99%"),
        ("1024sp", {"half_life": "16ba"}, "25%"),
        ("1ep", {"half_life": "96ba"}, "25%"),
        ("8ba", {"half_life": "1ba", "update_interval": "100ba"}, "100%"),
        ("8ba", {"half_life": "2ba"}, None),
        ("8ba", {"begin": "8ba"}, None),
        ("7ep", {"half_life": "100ba"}, None),
    ],
)
def test_an_average_that_is_largely_of_before_training_is_noted(
    max_duration: str, ema: dict[str, str], share: str | None
) -> None:
    """Of the quickstart's 192 batches an epoch, 32 documents each."""
    overrides = [f"max_duration={max_duration}", f"algorithms.ema={ema}", "scheduler={name: constant}"]
    notes = [note for note in compose(QUICKSTART, overrides, "cpu").notes if "algorithms.ema" in note]
    assert [f"{share} of the average will be the weights of batch 0" in note for note in notes] == (
        [True] if share else []
    )


def test_a_schedule_in_batches_of_a_run_in_epochs_of_unknown_length_is_not_judged(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_duration": "7ep", "scheduler": {"name": "cosine_with_warmup"}}
    changes["scheduler"] |= {"t_warmup": "2ba", "t_max": "1344ba"}
    assert compose(write_yaml(tmp_path, settings(tmp_path / "absent", **changes)), [], "cpu")
