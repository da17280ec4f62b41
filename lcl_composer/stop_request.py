"""Ask a run to stop: by a signal of the job's manager, or because its launcher is gone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from lcl_composer.errors import LCLError

#: What Slurm, Kubernetes and Docker send before they kill, and what a terminal sends at Ctrl-C.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

#: Stands for the number of a signal where the launcher has died.
LAUNCHER_GONE = 255

#: What asks, the later the more it counts: at Ctrl-C the launcher sends SIGTERM to ranks that got SIGINT too.
ASKED = (0, signal.SIGTERM, signal.SIGUSR1, LAUNCHER_GONE, signal.SIGINT)


class Stopped(LCLError):
    """The run stopped when it was asked to, behind a checkpoint.

    Args:
        message: What happened, in a line.
        exit_code: For the process: 128 and the signal's number, as of a process that the signal ended.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class StopRequest:
    """Notes SIGTERM, SIGUSR1 and SIGINT while it listens, for the training loop to stop after a batch.

    A second SIGINT ends the process at once. Under a launcher, its death is a request too: nobody else would
    ever end the ranks that it leaves behind.

    Args:
        launcher: The process of the launcher, None without one.
        heard: Called with the name of a signal that asks.
    """

    def __init__(self, launcher: int | None = None, heard: Callable[[str], None] = lambda name: None) -> None:
        self._launcher, self._heard = launcher, heard
        self._received = 0
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Take the signals; without effect outside of the main thread, where Python has none to give."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def ignore(self) -> None:
        """Give the signals back to what handled them before."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    @property
    def received(self) -> int:
        """Number of the signal that asks to stop, or ``LAUNCHER_GONE``; 0: nothing asks."""
        if not self._received and self._launcher not in (None, os.getppid()):
            self._received = LAUNCHER_GONE
        return self._received

    def _note(self, number: int, frame: object) -> None:
        if number == self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = max(self._received, number, key=ASKED.index)
        if self._received != LAUNCHER_GONE:
            self._heard(signal.Signals(self._received).name)
