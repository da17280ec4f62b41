"""Zero-shot classification in the course of training, which goes on as without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcl_composer.errors import ConfigError, DataError
from lcl_composer.registry import callbacks
from tests.algorithms.training import assert_same, logged, make_trainer, weights
from tests.evaluation.test_zero_shot import evaluation_of, write_images
from tests.models.tiny import IMAGE_SIZE, RULES, TOKENIZER, tiny_model


def test_it_logs_what_the_evaluation_measures_and_leaves_training_alone(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", ["2", "3", "5"], IMAGE_SIZE)
    plain, model = make_trainer(duration="2ba"), tiny_model()
    plain.fit()
    spec = {"name": "zero_shot", "images": images, "every": "1ba", "templates": ["{}", "1 {}"]}
    watched = make_trainer(
        callbacks=[callbacks.build(spec, layout=model.layout(TOKENIZER, RULES))], model=model, duration="2ba"
    )
    watched.fit()
    assert_same(weights(plain), weights(watched))
    measured = evaluation_of(images, model).measure(model, None, tmp_path)
    assert measured is not None
    for name in ("top1", "top5", "mean_top1", "chance"):
        values = logged(watched, f"zero_shot/{name}")
        assert len(values) == 2
        assert values[-1] == pytest.approx(measured[name])


def test_a_missing_folder_stops_the_run_before_it_trains(tmp_path: Path) -> None:
    layout = tiny_model().layout(TOKENIZER, RULES)
    missing = callbacks.build({"name": "zero_shot", "images": str(tmp_path / "nowhere")}, layout=layout)
    trainer = make_trainer(callbacks=[missing])
    with pytest.raises(DataError, match="nowhere: no such folder"):
        trainer.fit()
    assert trainer.state.timestamp.batch == 0
    spec = {"name": "zero_shot", "images": str(tmp_path), "templates": ["photo"]}
    trainer = make_trainer(callbacks=[callbacks.build(spec, layout=layout)])
    with pytest.raises(ConfigError, match=r"needs \{\} for the class name"):
        trainer.fit()
