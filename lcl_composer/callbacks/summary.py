"""Measure the model when training ends and print a table that a person understands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from lcl_composer.callbacks.periodic import evaluating
from lcl_composer.callbacks.pictures import log_picture
from lcl_composer.data.batch import PackedBatch
from lcl_composer.evaluation.evaluation import Evaluation
from lcl_composer.methods.method import method_of
from lcl_composer.methods.whole import whole
from lcl_composer.nodes import on_first_rank
from lcl_composer.report.gallery_picture import gallery_picture
from lcl_composer.report.metrics_file import read_metrics
from lcl_composer.report.summary import loss_ends, print_summary, write_summary


class EndTable(Callback):
    """Losses at start and end, and what ``evaluation:`` names.

    The measurements are taken at ``fit_end``, written to ``summary.json`` under their names and to the
    loggers under ``final/NAME/``; the table is printed when the trainer closes, after the progress bars.
    Held-out batches are those of the first evaluator (``data.eval``).

    Args:
        folder: The run folder, ``runs/NAME``, with ``metrics.jsonl`` and ``plots/`` in it.
        evaluations: By name.
        encoder: Where the exported encoder lies, named in the table.
        kept: Batches of the documents that ``data.train.hold_out`` keeps from training.
    """

    def __init__(
        self,
        folder: Path,
        evaluations: Mapping[str, Evaluation],
        encoder: Path | None = None,
        kept: Iterable[PackedBatch] | None = None,
    ):
        self.folder, self.evaluations, self.encoder = Path(folder), evaluations, encoder
        for evaluation in evaluations.values():
            evaluation.kept = kept
        self.summary: dict[str, Any] | None = None

    def init(self, state: State, logger: Logger) -> None:
        """Show each evaluation the untrained model."""
        with whole(state):
            for evaluation in self.evaluations.values():
                evaluation.start(method_of(state))

    def before_load(self, state: State, logger: Logger) -> None:
        """Let each evaluation look at what it will measure on."""
        if state.evaluators:
            held_out = state.evaluators[0].dataloader.dataloader
            for evaluation in self.evaluations.values():
                on_first_rank(partial(evaluation.check, held_out))

    def fit_end(self, state: State, logger: Logger) -> None:
        """Measure, log, write ``summary.json``."""
        held_out = state.evaluators[0].dataloader.dataloader if state.evaluators else None
        with evaluating(state):
            measured = {
                name: evaluation.measure(method_of(state), held_out, self.folder)
                for name, evaluation in self.evaluations.items()
            }
        results = {name: result for name, result in measured.items() if result is not None}
        for name, result in results.items():
            numbers = {key: value for key, value in result.items() if isinstance(value, float)}
            logger.log_metrics({f"final/{name}/{key}": value for key, value in numbers.items()})
        if dist.get_global_rank() == 0:
            if (gallery := gallery_picture(self.folder)) is not None and results:
                log_picture(logger, "gallery", gallery)
            self.summary = self._facts(state) | results
            write_summary(self.summary, self.folder / "summary.json")

    def post_close(self) -> None:
        """Print the table (rank 0)."""
        if self.summary:
            print_summary(self.summary, self.evaluations)
            self.summary = None

    def _facts(self, state: State) -> dict[str, Any]:
        """What ran, how long, how the losses went, where things lie."""
        now, plots = state.timestamp, self.folder / "plots"
        return {
            "name": state.run_name,
            "batches": int(now.batch),
            "documents": int(now.sample),
            "seconds": now.total_wct.total_seconds() if now.total_wct else 0.0,
            "losses": loss_ends(read_metrics(self.folder / "metrics.jsonl")),
            "run_folder": str(self.folder),
            "encoder": str(self.encoder) if self.encoder and self.encoder.is_dir() else None,
            "features": method_of(state).encoder.description,
            "plots": str(plots) if plots.is_dir() else None,
        }
