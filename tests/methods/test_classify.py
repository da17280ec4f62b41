"""Classification: its loss, a grid of heads against heads alone, ranks, microbatches, whole runs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lcl_composer.build import parameter_groups
from lcl_composer.config import compose
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.shared_memory import clean_shared_memory
from lcl_composer.errors import ConfigError
from lcl_composer.methods.build import build_model, find_classes
from lcl_composer.methods.classify import Classify
from tests import runs
from tests.methods.global_batch import assert_microbatches_agree, assert_ranks_agree, rows_of
from tests.methods.whole_runs import assert_resumes_exactly, fit, settings
from tests.models.tiny import IMAGE, bad_batch, document, gradients, tiny_method

NAMES = ("1", "2", "3", "4")
INTERN_VL: dict[str, Any] = {
    "query": "mean", "token_norm": "layer", "qkv_bias": True, "proj_dim": 8, "head_norm": True
}  # fmt: skip
AIM = partial(Classify, classes=NAMES, num_heads=2)
INTERN = partial(Classify, classes=NAMES, num_heads=2, **INTERN_VL)
GRID = {"lr": [0.1, 0.01], "weight_decay": [0.0, 0.5]}


def labelled(number: int) -> Document:
    return document(IMAGE, NAMES[number % 4], name=f"labelled-{number}")


def test_the_loss_is_the_cross_entropy() -> None:
    model = tiny_method(AIM)
    rows = rows_of(model, 6, labelled)
    outputs = model(rows)
    expected = torch.nn.functional.cross_entropy(outputs["logits"][0], torch.tensor([0, 1, 2, 3, 0, 1]))
    torch.testing.assert_close(model.loss(outputs, rows)["total"], expected)


def test_a_batch_without_an_image_trains_nothing_and_leaves_no_gradient_out() -> None:
    for method in (AIM, INTERN):
        model, rows = tiny_method(method), bad_batch(2)
        model.loss(model(rows), rows)["total"].backward()
        assert all(not gradient.any() for gradient in gradients(model).values())


@pytest.mark.parametrize(
    ("method", "optimizer"), [(AIM, torch.optim.AdamW), (INTERN, partial(torch.optim.SGD, momentum=0.9))]
)
def test_the_heads_of_a_grid_are_trained_as_if_alone(method: Any, optimizer: Any) -> None:
    def train(grid: dict[str, list[float]]) -> Classify:
        model = tiny_method(partial(method, grid=grid))
        model.encoder.requires_grad_(False)
        steps = optimizer(parameter_groups(model), lr=1.0)
        for _ in range(3):
            rows = rows_of(model, 7, labelled)
            steps.zero_grad()
            model.loss(model(rows), rows)["total"].backward()
            steps.step()
        return model

    together = train(GRID)
    for number, (lr, decay) in enumerate(together.heads):
        alone = train({"lr": [lr], "weight_decay": [decay]})
        for name, weight in alone.probe.weights.named_parameters():
            mine = together.probe.weights.get_parameter(f"{name.removesuffix('.0')}.{number}")
            torch.testing.assert_close(mine, weight, rtol=1e-4, atol=1e-5, msg=f"{name} of head {number}")


def test_the_value_of_a_grid_is_the_mean_over_its_heads() -> None:
    model = tiny_method(partial(AIM, grid=GRID))
    with torch.no_grad():
        for number, query in enumerate(model.probe.weights["query"]["weight"]):  # type: ignore[index,arg-type]
            query.mul_(number)
    rows = rows_of(model, 5, labelled)
    outputs = model(rows)
    each = [torch.nn.functional.cross_entropy(head, outputs["labels"]) for head in outputs["logits"]]
    assert len({float(loss) for loss in each}) == 4
    torch.testing.assert_close(model.loss(outputs, rows)["total"], torch.stack(each).mean())


@pytest.mark.parametrize("size", [2, 3])
def test_microbatches_add_up(size: int) -> None:
    """With norms that do not look at the batch; those that do see a microbatch, as the class says."""
    options = {**INTERN_VL, "head_norm": False}
    assert_microbatches_agree(partial(Classify, classes=NAMES, num_heads=2, **options), size, labelled)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "ranks"), [(AIM, 2), (INTERN, 4)], ids=["aim", "internvl"])
def test_uneven_ranks_have_the_gradient_of_one_process(method: Any, ranks: int) -> None:
    assert_ranks_agree(method, ranks, labelled)


def test_numbers_out_of_range_are_refused() -> None:
    """Each would end in an error of torch's, or train nothing but NaN."""
    fine = {"grid": None, "num_heads": 12, "proj_dim": None}
    assert not [*Classify.refusals(fine), *Classify.refusals(fine | {"proj_dim": 1 << 16})]
    for name, wrong in (
        ("num_heads", 0),
        ("num_heads", -12),
        ("proj_dim", 0),
        ("proj_dim", -1),
        ("proj_dim", 10**12),
        ("grid", {"lr": [float("nan")], "weight_decay": [0.1]}),
        ("grid", {"lr": [0.1, float("inf")], "weight_decay": [0.1]}),
        ("grid", {"lr": [0.1], "weight_decay": [0.1, float("nan")]}),
        ("grid", {"lr": [-0.1], "weight_decay": [0.1]}),
        ("grid", {"lr": [], "weight_decay": [0.1]}),
    ):
        assert [key for key, _ in Classify.refusals(fine | {name: wrong})] == [name], wrong


def test_a_grid_that_is_none_is_refused() -> None:
    def said(grid: Any) -> list[str]:
        return [text for _, text in Classify.refusals({"grid": grid, "num_heads": 12, "proj_dim": None})]

    assert said({"lr": [0.1]}) == ["has lr; give lr and weight_decay, a list each"]
    assert said({"lr": [0.1, -1], "weight_decay": []}) == [
        "lr is [0.1, -1]; give finite numbers, none below 0",
        "weight_decay is []; give finite numbers, none below 0",
    ]
    assert said(None) == said(GRID) == []


WORDS = ("circle", "ring", "square")


def write(folder: Path) -> Path:
    """Labelled pictures, three classes, some of which cannot be decoded."""
    rng, made = np.random.default_rng(0), []
    for number in range(40):
        data = runs.picture(rng) if number % 13 else b"no image"
        made.append(Document(f"labelled-{number}", "made up", (Image(data), Text(WORDS[number % 3]))))
    return runs.write_data(folder, made)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield write(tmp_path / "data")
    clean_shared_memory()


def experiment(data: Path, **changes: Any) -> dict[str, Any]:
    values = settings(data, {"name": "classify", "num_heads": 2, **changes.pop("method", {})}, **changes)
    values["model"] |= {"pooler": None, "language_model": None}
    values["data"] |= {"max_tokens": 1, "flip_probability": 0.5, "max_bad_fraction": 0.2}
    values["data"]["train"]["hold_out"] = 0.2
    values["evaluation"] = {"classification": {}}
    return values


FROZEN = {"layer_freezing": {"parts": ["encoder"]}}


@pytest.mark.slow
def test_a_frozen_grid_on_a_cache_resumes_exactly_and_leaves_the_encoder(data: Path, tmp_path: Path) -> None:
    algorithms = FROZEN | {"feature_cache": {"folder": "features", "views": 2, "batch_size": 4}}
    algorithms |= {"ema": {"half_life": "2ba"}}
    grid = {"lr": [0.1, 0.01], "weight_decay": [0.1]}
    values = experiment(data, method={"grid": grid}, algorithms=algorithms)
    assert_resumes_exactly(tmp_path, values)
    run = compose(runs.write_yaml(tmp_path, values), []).run
    torch.manual_seed(run.seed)
    before = build_model(run, 300, find_classes(run)).encoder.backbone.state_dict()
    after = load_file(tmp_path / "runs/whole/encoder/model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].numpy().tobytes() == after[name].numpy().tobytes() for name in after)


@pytest.mark.slow
def test_full_transfer_with_layer_decay_resumes_exactly(data: Path, tmp_path: Path) -> None:
    assert_resumes_exactly(tmp_path, experiment(data, method=INTERN_VL, algorithms={}, layer_decay=0.7))


@pytest.mark.slow
def test_a_cache_with_a_view_an_epoch_is_training_without(data: Path, tmp_path: Path) -> None:
    """32 bits a number; damaged images are bad samples in both."""
    plain = experiment(data, algorithms=FROZEN, run_name="plain")
    cache = {"feature_cache": {"folder": "features", "views": 2, "dtype": "float32"}}
    cached = experiment(data, algorithms=FROZEN | cache, run_name="cached")
    for values in (plain, cached):
        values["max_duration"] = "2ep"
    loaders = [fit(tmp_path, values).state.train_dataloader for values in (plain, cached)]
    assert loaders[0].bad_samples == loaders[1].bad_samples > 0  # type: ignore[union-attr]
    without, with_cache = (runs.read_metrics(tmp_path, name) for name in ("plain", "cached"))
    assert without.keys() == with_cache.keys()
    for step, losses in without.items():
        assert losses == pytest.approx(with_cache[step], rel=1e-4), step


def test_what_does_not_go_together_is_said(data: Path, tmp_path: Path) -> None:
    def said(values: dict[str, Any]) -> str:
        with pytest.raises(ConfigError) as caught:
            compose(runs.write_yaml(tmp_path, values), [])
        return str(caught.value)

    clipping = {"gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0}}
    values = experiment(data, method={"grid": GRID}, algorithms=clipping | {"feature_cache": {"folder": "f"}})
    values["data"]["eval"] = None
    values["data"]["train"]["hold_out"] = 0.0
    text = said(values)
    assert "feature_cache: needs an encoder that is frozen all the time" in text
    assert "method.grid: its heads would all train the encoder" in text
    assert "gradient_clipping: by norm ties the heads of method.grid together" in text
    assert "data.train.hold_out: is 0, but method.grid's best head is chosen on what is held out" in text
    assert "evaluation.classification: measures on held-out images; set data.eval" in text
    frozen = FROZEN | {"feature_cache": {"folder": "f"}, "patch_dropout": {"rate": 0.5}}
    assert "feature_cache: does not go with patch_dropout" in said(experiment(data, algorithms=frozen))
