from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lcl_composer.callbacks.jsonl_logger import JsonLinesLogger
from lcl_composer.callbacks.retrieval import draw_cosines
from lcl_composer.callbacks.run_record import RunRecord
from lcl_composer.errors import ConfigError
from lcl_composer.evaluation.retrieval import evaluate_retrieval
from lcl_composer.registry import callbacks
from lcl_composer.report.metrics_file import read_metrics
from tests.callbacks.training import make_trainer
from tests.evaluation.batches import make_batch
from tests.evaluation.fakes import FakeLCL


def test_both_ways_beside_chance_every_so_often(tmp_path: Path) -> None:
    retrieval = callbacks.build({"name": "retrieval", "every": "2ba", "max_images": 10})
    model = FakeLCL()
    loggers = [JsonLinesLogger(tmp_path / "metrics.jsonl")]
    make_trainer([RunRecord(tmp_path, ""), retrieval], loggers, model=model, duration="3ba").fit()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "retrieval/candidates" in row] == [2, 3]
    expected = evaluate_retrieval(model, [make_batch(4, seed, "held") for seed in range(3)], 10)
    measured = {name.removeprefix("retrieval/"): v for name, v in rows[-1].items() if "retrieval" in name}
    assert measured == expected
    assert len(measured) == 10  # three cut-offs of two ways and chance, and how many were ranked
    assert measured["candidates"] == 10
    files = sorted((tmp_path / "retrieval_cosines").iterdir())
    assert [file.name for file in files] == ["ba000002.png", "ba000003.png"]


def test_a_run_without_held_out_data_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"retrieval: .* set data\.eval"):
        make_trainer([callbacks.build({"name": "retrieval"})], held_out=False).fit()


def test_no_images_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.retrieval\.max_images: is 0, must be at least 1"):
        callbacks.build({"name": "retrieval", "max_images": 0})


def test_training_is_bitwise_the_same_with_it(tmp_path: Path) -> None:
    plain, watched = FakeLCL(dropout=0.3), FakeLCL(dropout=0.3)
    watched.load_state_dict(plain.state_dict())
    make_trainer([], model=plain, duration="4ba").fit()
    retrieval = callbacks.build({"name": "retrieval", "every": "1ba"})
    make_trainer([RunRecord(tmp_path, ""), retrieval], model=watched, duration="4ba").fit()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


def test_pairs_that_match_are_a_bright_diagonal() -> None:
    pixels = draw_cosines(torch.eye(8), 3 * torch.eye(8))
    tile = len(pixels) // 8
    tiles = pixels[::tile, ::tile].sum(-1)
    assert pixels.shape == (384, 384, 3)
    assert (tiles.diagonal() > tiles[~np.eye(8, dtype=bool)].max()).all()
    assert draw_cosines(torch.full((3, 2), torch.nan), torch.ones(3, 2)).shape == (384, 384, 3)
