"""Every name that `lcl list` prints trains two batches, is killed with SIGKILL and goes on at a relaunch.

Names are read off the registries, so that a new one is tried too; its constructor's needs go into NEEDED.
Converters train nothing, and methods want data of their own: tests/convert/ and tests/methods/ have them all.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from lcl_composer.config import RunConfig
from lcl_composer.config.diagnose import COMPONENTS as ALL_COMPONENTS
from lcl_composer.config.diagnose import TABLES
from lcl_composer.export import export_encoder
from lcl_composer.methods.build import build_model
from lcl_composer.registry import REGISTRIES, Registry
from tests import runs
from tests.evaluation.folders import write_folder
from tests.models.saved import END, save_tokenizer

pytestmark = pytest.mark.slow

COMPONENTS = {
    key: table
    for key, table in ALL_COMPONENTS.items()
    if key not in {("method",), ("model", "target_encoder")}  # a target is of one method, and any encoder
}
#: What constructors cannot do without, by parameter, or by name and parameter.
NEEDED: dict[str, Any] = {
    "clipping_threshold": 1.0,
    "clipping_type": "norm",
    "documents": 34,
    "end": 0.2,
    "folder": "exported",
    "images": "probe/val",
    "model": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    },
    "contrastive_weight.start": 0.1,
    "image_resolution.start": 8,
    "model_type": "dinov2",
    "monitor": "contrastive",
    "parts": ["pooler"],
    "per_class": 1,
    "policy": "constant",
    "rate": 0.5,
    "t_warmup": "1ba",
    "threshold": 0.0,
    "train": "probe/train",
    "until": "3ba",
    "val": "probe/val",
}
#: What they could do without, but not in a test.
SMALL: dict[str, dict[str, Any]] = {
    "encoder transformers": {
        "image_size": 16,
        "model_args": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8},
    },
    "early_stopper": {"patience": "100ep"},
    "stop_gradient": {"images": True},
}
#: Algorithms that take timm's VisionTransformer apart.
TIMM_ONLY = {"image_resolution", "patch_dropout"}
KILL = '''"""Kill."""

import os
import signal

from composer.core import Callback


class Kill(Callback):
    """SIGKILL after two batches."""

    def batch_start(self, state, logger):
        if state.timestamp.batch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
'''

#: What goes with one method or its data: tests/methods/ and tests/evaluation/ have whole runs of them.
OF_ONE_METHOD = {
    *("caption_retrieval", "captioning", "classification", "feature_cache", "text_encoder", "vqa"),
}
_NAMES = {
    key: [name for name in table.names() if name not in OF_ONE_METHOD]
    for key, table in (COMPONENTS | TABLES).items()
}
ROUNDS = max(len(names) for key, names in _NAMES.items() if key in COMPONENTS)


def spec(table: Registry[Any], name: str) -> dict[str, Any]:
    """What a YAML has to say to have a component."""
    needed = [k for k, p in table.parameters(name).items() if p.default is inspect.Parameter.empty]
    small = SMALL.get(f"{table.kind} {name}", SMALL.get(name, {}))
    return {key: NEEDED.get(f"{name}.{key}", NEEDED.get(key)) for key in needed} | small


def _of_round(names: list[str], number: int) -> list[str]:
    """Every ROUNDS-th name; of fewer names than rounds, one."""
    return names[number::ROUNDS] or [names[number % len(names)]]


def _encoder_of_round(number: int) -> str:
    """timm where an algorithm needs it, else the next of the others."""
    bound = [bool(TIMM_ONLY & set(_of_round(_NAMES["algorithms",], r))) for r in range(ROUNDS)]
    others = [name for name in _NAMES["model", "encoder"] if name != "timm"]
    return "timm" if bound[number] else others[bound[:number].count(False) % len(others)]


def experiment(number: int, data: Path) -> dict[str, Any]:
    """The settings of a round: of each kind the next name, of tables every ROUNDS-th one."""
    values = runs.settings(data, max_duration="4ba", save_interval="1ba", eval_interval="2ba")
    values["data"]["eval"] = {"local": str(data / "held_out"), "num_workers": 0}
    for key, table in (TABLES | COMPONENTS).items():
        names = _NAMES[key]
        section = values
        for part in key[:-1]:
            section = section[part]
        if key in TABLES:
            section[key[-1]] = {name: spec(table, name) for name in _of_round(names, number)}
            continue
        name = _encoder_of_round(number) if key == ("model", "encoder") else names[number % len(names)]
        if section.get(key[-1], {}).get("name") != name:
            section[key[-1]] = {"name": name, **spec(table, name)}
    if values["tokenizer"]["name"] == "bpe":
        values["tokenizer"]["path"] = str(data / "tokenizer.json")
    if values["tokenizer"]["name"] == "transformers":
        values["tokenizer"]["pretrained"] = str(data / "tokenizer")
    return values


def test_every_name_is_in_a_round(tmp_path: Path) -> None:
    assert {id(t) for t in (COMPONENTS | TABLES).values()} >= {
        id(table) for kind, table in REGISTRIES.items() if kind not in ("converters", "methods")
    }
    experiments = [experiment(number, tmp_path) for number in range(ROUNDS)]
    for key, names in _NAMES.items():
        tried: set[str] = set()
        for values in experiments:
            section: Any = values
            for part in key:
                section = section[part]
            tried |= set(section) if key in TABLES else {section["name"]}
        assert tried == set(names), key


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for part, seed in (("train", 0), ("val", 1)):
        write_folder(folder / "probe" / part, 3, seed=seed)
    save_tokenizer(folder / "tokenizer", list(runs.WORDS), eos_token=END)
    config = RunConfig(**runs.settings(folder))
    export_encoder(build_model(config, 300), config, folder / "exported")
    return folder


@pytest.mark.parametrize("number", range(ROUNDS))
def test_two_batches_kill_and_relaunch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/kill.py").write_text(KILL)
    for name in ("probe", "exported"):
        (tmp_path / name).symlink_to(data / name)
    values = experiment(number, data)
    yaml = runs.write_yaml(tmp_path, values)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    killed, output = runs.run_alone(tmp_path, yaml, "callbacks.kill={}").finish()
    assert killed == -9, output
    code, output = runs.run_alone(tmp_path, yaml).finish()
    assert code == 0, output
    lines = (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()
    steps = [row["step"] for row in map(json.loads, lines) if "loss/train/total" in row]
    assert steps == [1, 2, 3, 4]
    assert (tmp_path / "runs/tiny/encoder/model.safetensors").is_file()
    for logger in values["loggers"]:
        assert list((tmp_path / "runs/tiny" / logger).iterdir())
