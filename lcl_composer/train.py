"""One training run, from a YAML to the table at its end."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from lcl_composer.build import build_trainer
from lcl_composer.checkpoint import only_safe_loads
from lcl_composer.compatibility import mend_composer
from lcl_composer.config import RunConfig, compose
from lcl_composer.config.checks import effective_negatives
from lcl_composer.config.trial import this_device
from lcl_composer.data.shared_memory import clean_shared_memory
from lcl_composer.kernels import resolve_backend
from lcl_composer.nodes import name_signal_files_by_node
from lcl_composer.prepare import prepare

if TYPE_CHECKING:
    from composer import Trainer


def train(path: Path, overrides: list[str]) -> None:
    """Compose the YAML, make or find its data, train, measure.

    A run that is already finished says so and does nothing.

    Args:
        path: The experiment's YAML.
        overrides: ``a.b=c`` settings laid over it.

    Raises:
        LCLError: A problem that the user can mend, with a message of one line.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    composed = compose(path, overrides, this_device())
    only_safe_loads()
    mend_composer()

    from composer.utils import dist, get_device

    name_signal_files_by_node()
    dist.initialize_dist(get_device(None))
    with dist.run_local_rank_zero_first():
        if dist.get_local_rank() == 0:
            clean_shared_memory()
            prepare(composed.run)
    trainer = build_trainer(composed)
    if dist.get_global_rank() == 0:
        for note in composed.notes:
            print(f"note: {note}")
        print(opening_line(composed.run, trainer, dist.get_world_size()), flush=True)
    if trainer.state.max_duration is not None and trainer.state.timestamp >= trainer.state.max_duration:
        print(f"{composed.run.run_name} is already finished ({trainer.state.timestamp.batch}); nothing to do")
    else:
        trainer.fit()
    trainer.close()


def opening_line(config: RunConfig, trainer: Trainer, ranks: int) -> str:
    """What trains, on what, against how many negatives, and which kernels compute the losses."""
    device = next(trainer.state.model.parameters()).device
    parameters = sum(parameter.numel() for parameter in trainer.state.model.parameters())
    contrasted = effective_negatives(config, ranks) or "none"
    return (
        f"{config.run_name}: {parameters / 1e6:,.1f}M parameters on {ranks} x {device.type}, "
        f"{config.global_train_batch_size} documents a batch, {contrasted} contrasted at once, "
        f"losses by {resolve_backend(device, config.loss.backend)}; runs/{config.run_name}"
    )
