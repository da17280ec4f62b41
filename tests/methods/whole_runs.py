"""Whole runs of a method on a few made-up documents: trained, cut off, resumed, exported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger

from lcl_composer.build import build_trainer
from lcl_composer.checkpoint import only_safe_loads
from lcl_composer.config import compose
from lcl_composer.data.document import Document, Image, Text
from lcl_composer.export import load_encoder
from tests import runs


class Cut(Exception):
    """The crash of a run."""


class CutOff(Callback):
    """Crashes before a batch."""

    def __init__(self, at: int):
        self.at = at

    def batch_start(self, state: State, logger: Logger) -> None:
        if int(state.timestamp.batch) == self.at:
            raise Cut


def pairs(count: int) -> list[Document]:
    """One image and one text each."""
    made = []
    for index in range(count):
        whole = runs.made_up(1000 + index)
        image = next((s for s in whole.segments if isinstance(s, Image)), None)
        if image is not None:
            made.append(Document(f"pair-{index}", "made up", (image, whole.segments[0])))
    assert all(isinstance(document.segments[1], Text) for document in made)
    return made


def settings(data: Path, method: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Six batches of four, held out documents, a checkpoint after each second batch."""
    values = runs.settings(data, method=method, max_duration="6ba", save_interval="2ba", **changes)
    values["data"]["eval"] = {"local": str(data / "train"), "num_workers": 0}
    return values | {"eval_interval": "3ba", "evaluation": {"retrieval": {}} | changes.get("evaluation", {})}


def fit(folder: Path, values: dict[str, Any], cut_at: int | None = None, of: str = "") -> Trainer:
    """Compose, build and train in ``folder``; ranks write their YAMLs at once, each into its own ``of``."""
    os.chdir(folder)
    only_safe_loads()
    trainer = build_trainer(compose(runs.write_yaml(folder / of, values), []))
    if cut_at is not None:
        trainer.state.callbacks.append(CutOff(cut_at))
    try:
        trainer.fit()
    except Cut:
        assert cut_at is not None
    finally:
        trainer.close()
    return trainer


def assert_resumes_exactly(folder: Path, values: dict[str, Any]) -> None:
    """A run that was cut off and launched again logs what one without a cut logs, bit for bit."""
    fit(folder, values | {"run_name": "whole"})
    fit(folder, values | {"run_name": "cut"}, cut_at=5)
    fit(folder, values | {"run_name": "cut"})
    whole, cut = (runs.read_metrics(folder, name) for name in ("whole", "cut"))
    assert whole == cut
    assert len(whole) == 6
    losses = {name for row in whole.values() for name in row}
    assert "loss/train/total" in losses
    load_encoder(folder / "runs/whole/encoder")
