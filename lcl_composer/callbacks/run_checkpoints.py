"""The checkpoints of a run: finite, as many as asked for over all launches, and one before it stops."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from composer.callbacks import CheckpointSaver
from composer.core import State
from composer.loggers import Logger
from composer.utils import dist, parse_uri

from lcl_composer.errors import LCLError
from lcl_composer.last_word import heard, launcher
from lcl_composer.models.finite import not_finite
from lcl_composer.run_folder import CHECKPOINT_NAME, LATEST_NAME, RunFolder
from lcl_composer.stop_request import ASKED, LAUNCHER_GONE, Stopped, StopRequest


class RunCheckpoints(CheckpointSaver):
    """Composer's saver, with what it leaves out.

    - ``num_checkpoints_to_keep`` counts those of earlier launches too.
    - Weights and optimizer states that are not finite are not written; the run ends instead.
    - At SIGTERM, SIGUSR1 and SIGINT on any rank the batch is finished, a checkpoint written, the run stopped.
    - The run folder notes where the newest checkpoint lies, so that a launch that does not find it can tell.

    Args:
        run: The run's folder, and that of the checkpoints.
        save_interval: Composer time string.
        num_checkpoints_to_keep: The oldest beyond this number are deleted; -1 keeps all.
    """

    def __init__(self, run: RunFolder, save_interval: str, num_checkpoints_to_keep: int):
        _, _, place = parse_uri(run.checkpoints)
        super().__init__(
            folder=run.checkpoints,
            filename=CHECKPOINT_NAME,
            remote_file_name=str(Path(place, CHECKPOINT_NAME)),
            latest_filename=LATEST_NAME,
            latest_remote_file_name=str(Path(place, LATEST_NAME)),
            save_interval=save_interval,
            overwrite=True,  # a crash between a checkpoint and its symlink must not stop the relaunch
            num_checkpoints_to_keep=num_checkpoints_to_keep,
        )
        self.run = run
        self.stop = StopRequest(launcher(), heard)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Take over the checkpoints of earlier launches, and listen."""
        super().fit_start(state, logger)
        if dist.get_global_rank() == 0 and not self.run.remote:
            # One of a later batch is damaged, or training would go on from there: it goes first.
            now = int(state.timestamp.batch)
            found = sorted(self.run.found(), key=lambda item: (item.batch <= now, item.batch))
            self.saved_checkpoints = [str(item.path) for item in found]
        self.stop.listen()

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save if it is due or the run is asked to stop.

        Raises:
            Stopped: On all ranks, once the checkpoint is written.
        """
        asked = state.device.tensor_to_device(torch.tensor([ASKED.index(self.stop.received)]))
        dist.all_reduce(asked, reduce_operation="MAX")
        super().batch_checkpoint(state, logger)
        if not (number := ASKED[int(asked.item())]):
            return
        if self.last_checkpoint_batch != state.timestamp.batch:
            self._save_checkpoint(state, logger)
        super().fit_end(state, logger)  # waits for uploads
        by = "the end of its launcher" if number == LAUNCHER_GONE else signal.Signals(number).name
        raise Stopped(
            f"{self.run.name} stopped by {by} after batch {int(state.timestamp.batch)}, behind a "
            f"checkpoint in {self.run.checkpoints}; launched again the run goes on from there",
            128 + (signal.SIGTERM if number == LAUNCHER_GONE else number),
        )

    def fit_end(self, state: State, logger: Logger) -> None:
        """Leave the signals to Composer: there is no further batch to stop at."""
        super().fit_end(state, logger)
        self.stop.ignore()

    def close(self, state: State, logger: Logger) -> None:
        """Leave the signals to Composer, also after an error."""
        self.stop.ignore()

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        self._refuse_lost(state)
        path = self.filename.format(state)
        self.saved_checkpoints = [p for p in self.saved_checkpoints if p != path and os.path.exists(p)]
        super()._save_checkpoint(state, logger)
        if dist.get_global_rank() == 0:
            self.run.note_checkpoint(path, int(state.timestamp.batch))

    def _refuse_lost(self, state: State) -> None:
        """Raise LCLError, on all ranks, if weights or optimizer states are not finite on one of them."""
        lost = not_finite(dict(state.model.named_parameters()) | dict(state.model.named_buffers()))
        for optimizer in state.optimizers:
            moments = [value for slot in optimizer.state.values() for value in slot.values()]
            tensors = {str(i): value for i, value in enumerate(moments) if isinstance(value, torch.Tensor)}
            lost += ["the optimizer's state"] if not_finite(tensors) else []
        any_lost = state.device.tensor_to_device(torch.tensor([len(lost)]))
        dist.all_reduce(any_lost, reduce_operation="MAX")
        if any_lost.item():
            raise LCLError(
                f"batch {int(state.timestamp.batch)}: weights are not finite any more "
                f"({lost[0] if lost else 'on another rank'} and {max(len(lost) - 1, 0)} more); no checkpoint "
                "of them is written. Lower optimizer.lr or lengthen the warm-up; launched again the run goes "
                "on from its newest checkpoint"
            )
