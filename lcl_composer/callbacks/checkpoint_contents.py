"""Say what a checkpoint holds, and when a resume drops a part of it."""

from __future__ import annotations

from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist


class CheckpointContents(Callback):
    """Write the names of the run's algorithms into its checkpoints, and compare them on loading.

    A run that goes on without an algorithm of its checkpoint says so once, on rank 0: Composer passes over
    the algorithm's state in silence, an EMA's average for instance.
    """

    def __init__(self) -> None:
        self.algorithms: list[str] = []

    def init(self, state: State, logger: Logger) -> None:
        """Note the algorithms' names."""
        self.algorithms = [type(algorithm).__name__ for algorithm in state.algorithms]

    def state_dict(self) -> dict[str, Any]:
        """The names."""
        return {"algorithms": self.algorithms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare with the checkpoint's."""
        dropped = [name for name in state["algorithms"] if name not in self.algorithms]
        if dropped and dist.get_global_rank() == 0:
            print(
                f"The checkpoint was trained with {', '.join(dropped)}, this run is not: it goes on from the "
                "trained weights and drops the state of what is missing"
                + ("; the average of EMA is lost" if "EMA" in dropped else "")
            )
