"""What the cache finds, computes and says; training on it is tested with the method classify."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from composer.core import Event
from composer.core.precision import Precision

from lcl_composer.algorithms.feature_cache import FeatureCache
from lcl_composer.config.schema import StreamConfig
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.data.image import Augmentation
from lcl_composer.data.labelled import Labelled
from lcl_composer.data.loader import build_loader
from lcl_composer.data.shared_memory import clean_shared_memory
from lcl_composer.errors import ConfigError
from lcl_composer.methods.classify import Classify
from tests import runs
from tests.models.tiny import IMAGE_SIZE, tiny_encoder

NAMES = ("circle", "ring")


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    rng = np.random.default_rng(0)
    made = [
        Document(f"d{n}", "made up", (Image(runs.picture(rng) if n != 3 else b"none"), Text(NAMES[n % 2])))
        for n in range(12)
    ]
    yield runs.write_data(tmp_path / "data", made) / "train"
    clean_shared_memory()


def model() -> Classify:
    torch.manual_seed(0)
    made = Classify(tiny_encoder(), NAMES, num_heads=2)
    made.encoder.requires_grad_(False)
    return made


def state_of(classifier: Classify, folder: Path, **changes: Any) -> Any:
    """As far as the algorithm looks: loaders of the same documents, to train on and held out."""
    options = {"layout": Labelled(NAMES), "image_size": IMAGE_SIZE, "batch_size": 4, "seed": 5}
    options |= {"max_bad_fraction": 1.0, "pin_memory": False, **changes}
    settings = StreamConfig(local=str(folder), num_workers=0)
    train, held_out = (build_loader(settings, train=t, **options) for t in (True, False))
    return SimpleNamespace(
        model=classifier,
        train_dataloader=train.dataloader,
        evaluators=[SimpleNamespace(dataloader=held_out)],
        precision=Precision.FP32,
        precision_config=None,
    )


def run(state: Any, folder: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> list[str]:
    cache = FeatureCache(str(folder), dtype="float32", batch_size=5, **options)
    cache.apply(Event.AFTER_LOAD, cast(Any, state), cast(Any, None))
    return capsys.readouterr().out.splitlines()


def outcomes(lines: list[str]) -> list[str]:
    return ["found" if ", found;" in line else "computed" for line in lines if line.startswith("features")]


def test_features_are_the_encoders_of_what_the_stream_would_give(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crops = {"augmentation": Augmentation((0.2, 1.0), 0.5)}
    plain, cached = (state_of(model(), data, **crops) for _ in range(2))
    assert outcomes(run(cached, tmp_path / "features", capsys, views=2)) == ["computed"] * 3
    for loader in ("train", "eval"):
        pixels, tokens = (
            (s.train_dataloader if loader == "train" else s.evaluators[0].dataloader.dataloader)
            for s in (plain, cached)
        )
        for with_pixels, with_tokens in zip(pixels, tokens, strict=True):
            assert with_pixels["ids"] == with_tokens["ids"]
            expected = cached.model.encoder.eval()(with_pixels["pixel_values"])
            torch.testing.assert_close(with_tokens["pixel_values"], expected, rtol=1e-4, atol=1e-5)
            assert torch.equal(with_pixels["targets"], with_tokens["targets"])
    assert cached.model(with_tokens)["logits"].shape == (1, len(with_tokens["pixel_values"]), 2)
    assert cached.model.forward_flops(with_tokens)["encoder"] == 0


def test_what_is_there_is_found_and_what_changed_is_computed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "features"
    assert outcomes(run(state_of(model(), data), folder, capsys)) == ["computed", "computed"]
    assert outcomes(run(state_of(model(), data), folder, capsys)) == ["found", "found"]
    damaged = next(folder.glob("*/000000.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-40])
    lines = run(state_of(model(), data), folder, capsys)
    assert sorted(outcomes(lines)) == ["computed", "found"]
    assert any(line.startswith("note: ") and "truncated or damaged" in line for line in lines)
    assert outcomes(run(state_of(model(), data, seed=6), folder, capsys)) == ["computed", "found"]
    other = model()
    with torch.no_grad():
        next(other.encoder.parameters()).add_(0.1)
    assert outcomes(run(state_of(other, data), folder, capsys)) == ["computed", "computed"]


def test_an_encoder_that_is_trained_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = model()
    next(trained.encoder.parameters()).requires_grad_(True)
    with pytest.raises(ConfigError, match=r"the encoder's backbone\.\w+ is trained; freeze it"):
        run(state_of(trained, data), tmp_path, capsys)


def test_settings_out_of_range(tmp_path: Path) -> None:
    for name, value in (("views", 0), ("views", 10**12), ("batch_size", 0), ("batch_size", -1)):
        with pytest.raises(
            ConfigError, match=rf"feature_cache\.{name}: is {value}, must be (at least|from) 1"
        ):
            FeatureCache("features", **{name: value})
    (tmp_path / "README.md").write_text("")
    for folder in (tmp_path / "README.md", tmp_path / "README.md/cache"):
        with pytest.raises(
            ConfigError, match=r"feature_cache\.folder: .*README\.md is a file; name a folder"
        ):
            FeatureCache(str(folder))


def test_a_number_that_changed_is_computed_anew_and_said(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    run(state_of(model(), data), folder, capsys)
    path = next(p for p in sorted(folder.glob("*/*.npy")) if ".keys." not in p.name)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
    said = run(state_of(model(), data), folder, capsys)
    assert any("its numbers are not those that were written; computed anew" in line for line in said)
    assert path.read_bytes() == whole
