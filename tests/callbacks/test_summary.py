from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer.core import Callback
from composer.loggers import LoggerDestination
from rich.console import Console

from lcl_composer.callbacks.curves import Curves
from lcl_composer.callbacks.jsonl_logger import JsonLinesLogger
from lcl_composer.callbacks.summary import EndTable
from lcl_composer.errors import DataError
from lcl_composer.evaluation.held_out import HeldOutRetrieval
from lcl_composer.evaluation.probe_trained import FrozenProbe
from lcl_composer.report.metrics_file import read_metrics
from lcl_composer.report.summary import loss_ends, print_summary, write_summary
from tests.callbacks.training import make_trainer
from tests.evaluation.batches import SIDE
from tests.evaluation.fakes import FakeLCL, Words
from tests.evaluation.folders import write_folder

SUMMARY = {
    "name": "quickstart",
    "batches": 1200,
    "documents": 76800,
    "seconds": 200.0,
    "losses": {
        "contrastive": {"start": 4.158, "end": 1.203},
        "generation": {"start": 6.9, "end": 1.45},
        "total": {"start": 7.3158, "end": 1.5703},
    },
    "retrieval": {
        "candidates": 256.0,
        "chance/recall@1": 1 / 256,
        "image_to_text/recall@1": 0.0625,
        "text_to_image/recall@1": 0.05,
    },
    "probe": {
        "trained": 0.61,
        "untrained": 0.12,
        "chance": 1 / 48,
        "features": "patch_mean",
        "classes": 48,
        "val_images": 480,
    },
    "run_folder": "runs/quickstart",
    "encoder": "runs/quickstart/encoder",
    "plots": "runs/quickstart/plots",
}


def rendered(summary: dict, width: int = 100) -> str:
    stream = StringIO()
    probe = FrozenProbe.__new__(FrozenProbe)  # only its words are asked for, no folders are needed
    evaluations = {"retrieval": HeldOutRetrieval(Words()), "probe": probe}
    print_summary(summary, evaluations, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_table_says_what_each_number_is_compared_with() -> None:
    text = rendered(SUMMARY)
    for part in (
        "1,200 batches, 76,800 documents",
        *("Contrastive loss", "4.158 at the start", "1.203"),
        *("Image to text R@1", "0.39% by chance", "6.25%", "16.0 x chance", "12.8 x chance"),
        *("Linear probe accuracy", "12.0% untrained", "61.0%", "+49.0 points"),
        *("256 held-out images", "480 images of 48 classes, patch_mean features"),
        *("Run: runs/quickstart\n", "Encoder: runs/quickstart/encoder\n", "Plots: runs/quickstart/plots\n"),
    ):
        assert part in text


def test_an_encoder_from_elsewhere_is_not_called_untrained(tmp_path: Path) -> None:
    model = FakeLCL()
    model.encoder.weights = "4c1f"
    make_trainer([end_table(tmp_path)], model=model, duration="1ba").fit()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["probe"]["as_it_came"] == 1.0
    assert "untrained" not in summary["probe"]
    probe = {"trained": 0.61, "as_it_came": 0.58, "chance": 1 / 48, "features": "patch_mean"}
    text = rendered(SUMMARY | {"probe": {**probe, "classes": 48, "val_images": 480}})
    assert "58.0% as it came" in text
    assert "+3.0 points" in text
    assert "untrained" not in text


def test_a_long_path_is_not_broken_over_lines() -> None:
    folder = "runs/" + "x" * 150
    assert f"Run: {folder}\n" in rendered(SUMMARY | {"run_folder": folder}, width=80)


def test_names_from_data_are_no_markup() -> None:
    features = {"features": "[red]x[/b]\x1b[2J"}
    assert "[red]x[/b]\ufffd[2J features" in rendered(SUMMARY | {"probe": SUMMARY["probe"] | features})


def test_parts_that_were_not_measured_are_left_out() -> None:
    measured = {name: value for name, value in SUMMARY.items() if name not in ("retrieval", "probe")}
    text = rendered(measured | {"encoder": None, "plots": None})
    assert "Contrastive loss" in text
    assert not any(word in text for word in ("R@1", "probe", "Encoder", "Plots"))


def test_loss_ends_are_means_of_a_few_steps() -> None:
    rows = [{"step": i, "loss/train/total": float(i)} for i in range(1, 101)]
    assert loss_ends(rows) == {"total": {"start": 3.0, "end": 98.0}}
    assert loss_ends(rows[:3]) == {"total": {"start": 1.0, "end": 3.0}}
    assert loss_ends([{"step": 1, "loss/train/total": 7.0}]) == {"total": {"start": 7.0, "end": 7.0}}


def test_the_file_is_strict_json(tmp_path: Path) -> None:
    write_summary({"losses": {"total": {"end": float("nan")}}}, tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text()) == {"losses": {"total": {"end": None}}}


def end_table(tmp_path: Path) -> EndTable:
    for part, seed in (("train", 0), ("val", 1)):
        if not (tmp_path / part).exists():
            write_folder(tmp_path / part, 6, seed=seed)
    evaluations = {
        "retrieval": HeldOutRetrieval(Words(), max_images=10),
        "probe": FrozenProbe(str(tmp_path / "train"), str(tmp_path / "val"), SIDE),
    }
    return EndTable(tmp_path / "run", evaluations, encoder=tmp_path / "run" / "encoder")


def test_what_cannot_be_measured_stops_a_run_before_it_trains(tmp_path: Path) -> None:
    """Each evaluation is shown the held-out loader before any training."""
    table, seen = end_table(tmp_path), []

    class Refuses(HeldOutRetrieval):
        def check(self, held_out: Any) -> None:
            seen.append(list(held_out))
            raise DataError("data.eval: nothing to measure on")

    table.evaluations = {"retrieval": Refuses(Words())}
    with pytest.raises(DataError, match="nothing to measure on"):
        make_trainer([table])
    assert len(seen[0]) == 3


def test_a_run_ends_with_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = tmp_path / "run" / "metrics.jsonl"
    callbacks = [Curves(tmp_path / "run"), end_table(tmp_path)]
    trainer = make_trainer(callbacks, [JsonLinesLogger(metrics)], duration="6ba")
    trainer.fit()
    trainer.close()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["retrieval"]["candidates"] == 10
    assert summary["losses"]["contrastive"]["start"] > 0
    assert summary["batches"] == 6
    assert summary["features"] == {"encoder": "a fake"}
    assert summary["encoder"] is None  # none was exported
    printed = capsys.readouterr().out
    assert "Text to image R@1" in printed
    assert "Linear probe accuracy" in printed
    assert str(tmp_path / "run" / "plots") in printed
    assert read_metrics(metrics)[-1]["final/probe/trained"] == summary["probe"]["trained"]


def test_untrained_is_the_encoder_before_training_also_after_a_resume(tmp_path: Path) -> None:
    class Blind(Callback):
        """Training that ruins the encoder."""

        def batch_end(self, state, logger) -> None:
            for parameter in state.model.encoder.parameters():
                parameter.data.zero_()

    for duration in ("2ba", "4ba"):
        torch.manual_seed(0)
        callbacks = [Blind(), end_table(tmp_path)]
        make_trainer(
            callbacks, model=FakeLCL(), duration=duration, save_folder=tmp_path / "checkpoints"
        ).fit()
        summary = json.loads((tmp_path / "run/summary.json").read_text())
        assert summary["batches"] == int(duration[0])
        assert summary["probe"]["untrained"] == 1.0
        assert summary["probe"]["trained"] < 0.5


def test_measuring_leaves_the_trained_weights(tmp_path: Path) -> None:
    with_table, without = FakeLCL(), FakeLCL()
    without.load_state_dict(with_table.state_dict())
    make_trainer([end_table(tmp_path)], model=with_table).fit()
    make_trainer([], model=without).fit()
    assert all(torch.equal(a, b) for a, b in zip(with_table.parameters(), without.parameters(), strict=True))
    assert with_table.training


def test_the_gallery_shows_what_was_measured(tmp_path: Path) -> None:
    retrieval = HeldOutRetrieval(Words(), max_images=10)
    retrieval.gallery.queries = 10
    make_trainer([EndTable(tmp_path, {"retrieval": retrieval})], model=FakeLCL()).fit()
    measured = json.loads((tmp_path / "summary.json").read_text())["retrieval"]
    page = json.loads((tmp_path / "gallery.json").read_text())
    right_at_once = [query["rank"] == 1 for query in page["text_to_image"]]
    assert sum(right_at_once) / 10 == pytest.approx(measured["text_to_image/recall@1"])


def test_without_held_out_documents_retrieval_is_left_out(tmp_path: Path) -> None:
    make_trainer([EndTable(tmp_path, {"retrieval": HeldOutRetrieval(Words())})], held_out=False).fit()
    assert "retrieval" not in json.loads((tmp_path / "summary.json").read_text())


def test_a_missing_probe_folder_is_told_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        FrozenProbe(str(tmp_path / "absent"), str(tmp_path / "absent"), SIDE)


class Shown(LoggerDestination):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.pictures: dict[str, np.ndarray] = {}

    def log_images(self, images: Any, name: str = "", *_: Any, **__: Any) -> None:
        self.pictures[name] = images


def test_loggers_get_the_gallery_as_a_picture(tmp_path: Path) -> None:
    shown = Shown()
    table = EndTable(tmp_path, {"retrieval": HeldOutRetrieval(Words(), max_images=4)})
    trainer = make_trainer([table], [JsonLinesLogger(tmp_path / "metrics.jsonl"), shown], duration="1ba")
    trainer.fit()
    trainer.close()
    queries = json.loads((tmp_path / "gallery.json").read_text())["text_to_image"]
    assert len(shown.pictures["gallery"]) == 112 * len(queries) > 0
