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
