"""What is measured when a run ends: an object that measures and says how its result reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lcl_composer.data.batch import PackedBatch
    from lcl_composer.methods.method import Method


class Row(NamedTuple):
    """A line of the table at the end of a run."""

    measured: str
    compared_with: str
    result: str
    difference: str


class Evaluation(ABC):
    """A measurement named in ``evaluation:``; files that it needs are opened at its construction."""

    #: Batches of the documents that ``data.train.hold_out`` keeps from training, to choose by; None: none.
    kept: Iterable[PackedBatch] | None = None

    def start(self, model: Method) -> None:  # noqa: B027 (most have nothing to do)
        """Look at the model as it was built, before any checkpoint is loaded."""

    def check(self, held_out: Iterable[PackedBatch]) -> None:  # noqa: B027 (many need no document)
        """Look at the documents of ``data.eval`` before training; the first rank calls it.

        Raises:
            DataError: If there is none that can be measured on.
        """

    @abstractmethod
    def measure(
        self, model: Method, held_out: Iterable[PackedBatch] | None, folder: Path
    ) -> dict[str, Any] | None:
        """Measure; all ranks call it together, in eval mode and without gradients.

        Args:
            model: The trained model.
            held_out: Batches of ``data.eval``, None where a run has none.
            folder: The run folder, for files to look at.

        Returns:
            The result as JSON values, None where there is nothing to measure. Floats are logged.
        """

    @abstractmethod
    def rows(self, result: dict[str, Any]) -> list[Row]:
        """The result as lines of the table."""

    @abstractmethod
    def note(self, result: dict[str, Any]) -> str:
        """What the numbers were measured on, a line below the table."""
