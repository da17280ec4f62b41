"""What `lcl train` refuses once the model is built, `lcl check` refuses in the same line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcl_composer.commands.check import model_sizes
from lcl_composer.config import compose
from lcl_composer.errors import ConfigError
from tests import runs
from tests.config.test_compose import YAMLS
from tests.data.conftest import png

QUICKSTART = YAMLS / "quickstart.yaml"
MASKED = YAMLS / "methods" / "masked.yaml"
CLIP = YAMLS / "methods" / "clip.yaml"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(path: Path, *overrides: str) -> str:
    composed = compose(path, overrides)
    with pytest.raises(ConfigError) as caught, composed.located():
        model_sizes(composed.run)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "override", "message"),
    [
        (QUICKSTART, "data.max_tokens=10", "data.max_tokens = 10 cannot hold an image of 9 tokens"),
        (MASKED, "evaluation.retrieval={}", "evaluation.retrieval: the method Masked contrasts nothing"),
        (MASKED, "callbacks.retrieval={}", "callbacks.retrieval: the method Masked contrasts nothing"),
        (MASKED, "callbacks.feature_health={}", "callbacks.feature_health: the method Masked contrasts"),
        (MASKED, "algorithms.grad_cache={}", "algorithms.grad_cache: the method Masked contrasts nothing"),
        (MASKED, "algorithms.stop_gradient={images: true}", "algorithms.stop_gradient: the method Masked"),
        (
            MASKED,
            "algorithms.contrastive_temperature={policy: learnable}",
            "algorithms.contrastive_temperature: the method Masked contrasts nothing",
        ),
        (MASKED, "callbacks.early_stopper={monitor: contrastive}", "callbacks.early_stopper.monitor: no"),
        (MASKED, "model.language_model.model_type=gemma2", "model.language_model: this method attends"),
        (
            QUICKSTART,
            "model.language_model.model_args={attention_dropout: 0.1}",
            "model.language_model.model_args: packed attention has no dropout",
        ),
        (CLIP, "algorithms.layer_freezing={parts: [vision]}", "algorithms.layer_freezing.parts: the method"),
        (CLIP, "callbacks.attention_maps={}", "callbacks.attention_maps: the method has no attentive pooler"),
        (CLIP, "callbacks.knn={train: a, val: a, features: pooled}", "callbacks.knn.features: pooled, but"),
        (
            QUICKSTART,
            "algorithms.image_resolution={start: 17, until: 2ba}",
            "algorithms.image_resolution.start: 17 must be a multiple of the patch size 16",
        ),
        (
            QUICKSTART,
            "model.encoder.model_args.patch_drop_rate=0.5;algorithms.patch_dropout={rate: 0.5}",
            "algorithms.patch_dropout: the encoder has a patch_drop_rate already",
        ),
    ],
)  # fmt: skip
def test_a_setting_that_does_not_fit_the_model(path: Path, override: str, message: str) -> None:
    found = refused(path, *override.split(";"))
    assert found.startswith(f"command line: {message}")
    assert "\n" not in found


def test_the_line_is_that_of_the_file_and_there_may_be_several(tmp_path: Path) -> None:
    values = runs.settings(tmp_path, evaluation={"retrieval": {}}, method={"name": "masked"})
    values["data"]["eval"] = values["data"]["train"]
    values["algorithms"] = {"layer_freezing": {"parts": ["all"]}}
    path = runs.write_yaml(tmp_path, values)
    lines = path.read_text().splitlines()
    frozen, searched = (
        number for number, line in enumerate(lines, 1) if "parts:" in line or "retrieval:" in line
    )
    assert refused(path) == (
        "2 problems in the configuration:\n"
        f"  experiment.yaml:{frozen}: algorithms.layer_freezing.parts: the method Masked has no part 'all'; "
        "known: encoder, language_model, pooler\n"
        f"  experiment.yaml:{searched}: evaluation.retrieval: the method Masked contrasts nothing; remove it"
    )


def test_a_run_that_would_train_nothing(tmp_path: Path) -> None:
    method = {"name": "classify", "num_heads": 2}
    values = runs.settings(tmp_path, method=method)
    for part in ("pooler", "language_model"):
        del values["model"][part]
    values["algorithms"] = {"layer_freezing": {"parts": ["encoder", "probe"]}}
    found = refused(runs.write_yaml(tmp_path, values))
    assert "algorithms.layer_freezing.parts: has all that the method trains" in found


def test_evaluations_whose_data_are_there_pass(tmp_path: Path) -> None:
    """A probe keeps the weights of before training, of which there are none yet."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            picture = tmp_path / "pictures" / split / name / "0.png"
            picture.parent.mkdir(parents=True)
            picture.write_bytes(png(1))
    folders = {split: f"pictures/{split}" for split in ("train", "val")}
    composed = compose(QUICKSTART, [f"evaluation={{probe: {folders}, zero_shot: {{images: pictures/val}}}}"])
    model_sizes(composed.run)


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_a_loss_reads_what_forward_returns(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lcl_composer.methods.masked.Masked.forward", _without_targets)
    found = refused(MASKED, f"model.language_model.model_type={family}")
    assert found.partition(": ")[2] == (
        "method: a term reads 'targets', which forward() does not return; it returns hidden"
    )


def _without_targets(self, batch):  # type: ignore[no-untyped-def]
    outputs = self.language_model.read(batch)
    return {"hidden": self.generation.normalise(outputs)}
