"""What a checkpoint says of its run, and what a launch that goes on from it makes of other settings."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from lcl_composer.checkpoint import Begun
from lcl_composer.errors import DataError
from lcl_composer.resume import Change, check_ended, check_resume, table
from lcl_composer.run_folder import Start


class CheckpointContents(Callback):
    """Write into checkpoints what the run is, and bring into force what the YAML has changed since.

    Composer restores the optimizer's settings over those of the YAML, and passes over the state of algorithms
    that are gone (an EMA's average) in silence. Here the YAML's are in force, and every change is said.

    Args:
        now: This launch; None: a run without a config (in tests).
        start: Where the launch starts.
    """

    def __init__(self, now: Begun | None = None, start: Start | None = None) -> None:
        self.now, self.start = now, start or Start()
        self.algorithms: list[str] = []
        self.changes: list[Change] = []
        self._loaded: Begun | None = None
        self._state: State | None = None
        self._fresh: list[list[dict[str, Any]]] = []

    @property
    def ended(self) -> bool:
        """Whether the training that is resumed had ended, and the YAML asks for no more."""
        if self._loaded is None or self.now is None:
            return False
        state = self._state
        if state is not None and state.max_duration is not None and state.timestamp >= state.max_duration:
            return True
        then, now = (settings.get("max_duration") for settings in (self._loaded.settings, self.now.settings))
        return self._loaded.ended and then == now

    def init(self, state: State, logger: Logger) -> None:
        """Note the algorithms' names."""
        self._state = state
        self.algorithms = [type(algorithm).__name__ for algorithm in state.algorithms]

    def state_dict(self) -> dict[str, Any]:
        """What :class:`lcl_composer.checkpoint.Begun` has, and the names of the algorithms."""
        assert self._state is not None, "INIT comes first"
        limit = self._state.max_duration
        ended = limit is not None and self._state.timestamp >= limit
        return {"algorithms": self.algorithms, **(asdict(self.now) if self.now else {}), "ended": ended}

    def before_load(self, state: State, logger: Logger) -> None:
        """Keep the YAML's settings of the optimizer.

        Raises:
            DataError: If something is trained here that the checkpoint has no optimizer state of.
        """
        self._fresh = [[_settings(g) for g in optimizer.param_groups] for optimizer in state.optimizers]
        stepped = set(self.start.begun.stepped) if self.start.begun else set()
        trained = [name for name, p in state.model.named_parameters() if p.requires_grad]
        if stepped and (new := [name for name in trained if name not in stepped]):
            raise DataError(
                f"checkpoint {self.start.path}: {len(new)} tensors are trained here that were frozen there "
                f"({new[0]!r}): freeze them as before (algorithms.layer_freezing), or choose another run_name"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what the checkpoint says; tell which algorithms are gone."""
        self._loaded = Begun.of(state)
        dropped = [name for name in state["algorithms"] if name not in self.algorithms]
        if dropped and dist.get_global_rank() == 0:
            print(
                f"The checkpoint was trained with {', '.join(dropped)}, this run is not: it goes on from the "
                "trained weights and drops the state of what is missing"
                + ("; the average of EMA is lost" if "EMA" in dropped else "")
            )

    def after_load(self, state: State, logger: Logger) -> None:
        """Bring changed settings into force and say them.

        Raises:
            DataError: If there is one that cannot change in mid-run.
        """
        notes = list(self.start.notes)
        if self._loaded and self.now:
            where = self.start.path or "of the save_folder"
            self.changes = check_resume(where, self._loaded, self.now)
            if self.ended:
                check_ended(where, self.changes)
            if not self._loaded.settings:
                notes.append(f"checkpoint {where} does not say its settings: they are not compared")
        if any(_moves_learning_rate(change) for change in self.changes):
            self._put_in_force(state)
        if dist.get_global_rank() == 0:
            for note in notes:
                print(f"note: {note}")
            if not self.ended:
                self.say_changes(int(state.timestamp.batch))

    def say_changes(self, batch: int) -> None:
        """Print the changed settings that are in force from here on; of a finished run none is."""
        if self.changes and self.now:
            print(table(self.now.run_name, batch, self.changes), flush=True)

    def _put_in_force(self, state: State) -> None:
        """Give the optimizer the YAML's settings, and the learning rate that the schedule has here."""
        for optimizer, fresh in zip(state.optimizers, self._fresh, strict=True):
            for group, settings in zip(optimizer.param_groups, fresh, strict=True):
                group.update(settings)
        now = state.timestamp
        state.timestamp = now.copy(batch=now.batch - 1)  # the schedule is stepped before the batch counts
        for scheduler in state.schedulers:
            groups = scheduler.optimizer.param_groups
            scheduler.base_lrs = [group["initial_lr"] for group in groups]
            for group, factor in zip(groups, scheduler.lr_lambdas, strict=True):  # type: ignore[attr-defined]
                group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)
        state.timestamp = now


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _moves_learning_rate(change: Change) -> bool:
    return change.key == "max_duration" or change.key.startswith(("optimizer.", "scheduler."))
