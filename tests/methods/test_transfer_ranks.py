"""Transfer trainings as `composer -n 2 train.py` launches them: what one rank trains, writes and measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lcl_composer.data.document import Document, Image, Text
from tests import runs

pytestmark = pytest.mark.world_size(2)

NAMES = ("circle", "ring", "square")
FROZEN = {"layer_freezing": {"parts": ["encoder"]}}
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}

#: What of ``summary.json`` says how long it took or where it ran.
_OF_THE_MACHINE = ("seconds", "throughput", "memory", "ranks", "features")


def labelled(number: int, rng: np.random.Generator) -> tuple[Text, ...]:
    """A class."""
    return (Text(NAMES[number % 3]),)


def captioned(number: int, rng: np.random.Generator) -> tuple[Text, ...]:
    """Two captions, or for ``vqa`` a question and an answer."""
    return tuple(Text(f"{number} " + " ".join(rng.choice(runs.WORDS, 3))) for _ in range(2))


TASKS: dict[str, Any] = {
    "classify": (
        labelled,
        {
            "method": {
                "name": "classify",
                "num_heads": 2,
                "grid": {"lr": [0.1, 0.01], "weight_decay": [0.1]},
            },
            "algorithms": FROZEN | {"feature_cache": {"folder": "features", "dtype": "float32"}},
            "evaluation": {"classification": {}},
            "layers": {"pooler": None, "language_model": None},
        },
    ),
    "retrieve": (
        captioned,
        {
            "method": {"name": "retrieve", "text_pooling": "mean"},
            "algorithms": FROZEN | {"grad_cache": {}},
            "device_train_microbatch_size": 2,
            "evaluation": {"caption_retrieval": {}},
            "layers": {"language_model": {"name": "text_encoder", **SIZES}},
        },
    ),
    "caption": (
        captioned,
        {
            "method": {"name": "caption"},
            "algorithms": FROZEN,
            "evaluation": {"captioning": {"beams": 2, "max_new_tokens": 6, "meteor": False}},
            "layers": {"pooler": None},
        },
    ),
}


def write_task(folder: Path, task: str) -> Path:
    """Pictures with the task's texts, an odd number of them, one of which cannot be decoded; and its YAML."""
    texts, changes = TASKS[task]
    rng, made = np.random.default_rng(0), []
    for number in range(27):
        data = runs.picture(rng) if number != 13 else b"no image"
        made.append(Document(f"d{number}", "made up", (Image(data), *texts(number, rng))))
    data = runs.write_data(folder / "data", made)
    changes = dict(changes)
    layers = changes.pop("layers")
    values = runs.settings(data, max_duration="5ba", save_interval="5ba", eval_interval="1dur", **changes)
    values["model"] |= layers
    values["data"] |= {"max_bad_fraction": 0.2, "eval": {"local": str(data / "train"), "num_workers": 0}}
    if task == "classify":
        values["data"]["train"]["hold_out"] = 0.2
    return runs.write_yaml(folder, values)


def numbers(found: Any, name: str = "") -> dict[str, float]:
    """The measurements of ``summary.json``, flat."""
    if isinstance(found, dict):
        kept = {k: v for k, v in found.items() if not k.startswith(_OF_THE_MACHINE)}
        return {k: v for key, value in kept.items() for k, v in numbers(value, f"{name}/{key}").items()}
    return {name: found} if isinstance(found, float | int) else {}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_ranks_train_and_measure_what_one_does(task: str, tmp_path: Path) -> None:
    path = write_task(tmp_path, task)
    for job in (
        runs.run_alone(tmp_path, path, "run_name=one"),
        runs.launch(tmp_path, path, 2, "run_name=two", "algorithms.feature_cache.folder=others")
        if task == "classify"
        else runs.launch(tmp_path, path, 2, "run_name=two"),
    ):
        code, output = job.finish()
        assert code == 0, output
    one, two = (runs.read_metrics(tmp_path, name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert len(one) == 5
    for step, losses in one.items():
        assert two[step] == pytest.approx(losses, rel=1e-4), step
    first, other = (
        numbers(json.loads((tmp_path / f"runs/{name}/summary.json").read_text())) for name in ("one", "two")
    )
    assert other == pytest.approx(first, rel=1e-3)
    assert any(name.startswith(f"/{next(iter(TASKS[task][1]['evaluation']))}/") for name in first)
    for kept in ("captions.jsonl", f"outcomes/{next(iter(TASKS[task][1]['evaluation']))}.json"):
        files = [tmp_path / f"runs/{name}" / kept for name in ("one", "two")]
        if kept.startswith("outcomes") or task == "caption":
            assert files[0].read_text() == files[1].read_text()
