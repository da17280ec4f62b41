"""Measure the model when training ends and print a table that a person understands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from lcl_composer.callbacks.periodic import evaluating
from lcl_composer.callbacks.unwrap import lcl_model
from lcl_composer.evaluation.features import open_image_folder
from lcl_composer.evaluation.gallery import Gallery
from lcl_composer.evaluation.metrics import retrieval_metrics
from lcl_composer.evaluation.probe import ProbeSettings, probe_model
from lcl_composer.evaluation.retrieval import RetrievalSettings, collect_features
from lcl_composer.evaluation.weights import image_side_state, image_side_weights
from lcl_composer.report.metrics_file import read_metrics
from lcl_composer.report.summary import loss_ends, print_summary, write_summary


class EndTable(Callback):
    """Losses at start and end, retrieval beside chance, the probe beside the untrained encoder.

    Retrieval runs on the first evaluator's documents (``data.eval``). The untrained encoder is this
    model's own at construction: its weights are copied before any checkpoint is loaded, so a resumed run,
    whose construction gives the same weights from the same seed, compares with the same encoder.

    The measurements are taken at ``fit_end``, written to ``summary.json`` and to the loggers under
    ``final/``; the table is printed when the trainer closes, after the progress bars. With a gallery, what
    retrieval finds for a few queries goes to ``gallery.json``, to be looked at in ``lcl report``.

    Args:
        folder: The run folder, ``runs/NAME``, with ``metrics.jsonl`` and ``plots/`` in it.
        transform: Evaluation transform of an image: PIL -> uint8 [3, H, W].
        retrieval: Settings, or None to leave it out.
        probe: Settings, or None to leave it out.
        encoder: Where the exported encoder lies, named in the table.
        gallery: Shows what retrieval finds; None leaves it out.
    """

    def __init__(
        self,
        folder: Path,
        *,
        transform: Callable[[Any], Tensor],
        retrieval: RetrievalSettings | None,
        probe: ProbeSettings | None,
        encoder: Path | None = None,
        gallery: Gallery | None = None,
    ):
        self.folder, self.transform, self.encoder = Path(folder), transform, encoder
        self.retrieval, self.probe, self.gallery = retrieval, probe, gallery
        self.summary: dict[str, Any] | None = None
        self._untrained: dict[str, Tensor] = {}
        if probe:  # opened now: a missing folder must not surface after hours of training
            self._train_images = open_image_folder(probe.train, transform)
            self._val_images = open_image_folder(probe.val, transform)

    def init(self, state: State, logger: Logger) -> None:
        """Keep the untrained weights of encoder and pooler."""
        if self.probe:
            self._untrained = image_side_state(lcl_model(state))

    def fit_end(self, state: State, logger: Logger) -> None:
        """Measure, log, write ``summary.json``."""
        with evaluating(state):
            retrieval, probe = self._measure_retrieval(state), self._measure_probe(state)
        self._log(logger, retrieval, probe)
        if dist.get_global_rank() == 0:
            self.summary = self._facts(state) | {"retrieval": retrieval, "probe": probe}
            write_summary(self.summary, self.folder / "summary.json")

    def post_close(self) -> None:
        """Print the table (rank 0)."""
        if self.summary:
            print_summary(self.summary)
            self.summary = None

    def _measure_retrieval(self, state: State) -> dict[str, float] | None:
        if self.retrieval is None or not state.evaluators:
            return None
        batches = state.evaluators[0].dataloader.dataloader
        watched = self.gallery.watch(batches) if self.gallery else batches
        features = collect_features(lcl_model(state), watched, self.retrieval.max_images)
        if self.gallery:
            self.gallery.write(features, self.folder)
        return retrieval_metrics(features.images, features.contexts)

    def _measure_probe(self, state: State) -> dict[str, Any] | None:
        if self.probe is None:
            return None
        model, sets = lcl_model(state), (self._train_images, self._val_images)
        trained = probe_model(model, *sets, self.probe)
        with image_side_weights(model, self._untrained):
            untrained = probe_model(model, *sets, self.probe)
        return {
            "trained": trained.accuracy,
            "untrained": untrained.accuracy,
            "chance": trained.chance,
            "features": self.probe.features,
            "classes": len(self._val_images.classes),
            "val_images": len(self._val_images),
        }

    def _log(self, logger: Logger, retrieval: dict[str, float] | None, probe: dict[str, Any] | None) -> None:
        metrics = {f"final/{name}": value for name, value in (retrieval or {}).items()}
        if probe:
            metrics |= {f"final/probe/{name}": probe[name] for name in ("trained", "untrained", "chance")}
        logger.log_metrics(metrics)

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
            "encoder": str(self.encoder) if self.encoder else None,
            "plots": str(plots) if plots.is_dir() else None,
        }
