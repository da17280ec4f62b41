"""Tell somebody when a run ends, by a command or a webhook."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from composer.core import Callback

from lcl_composer.errors import one_line
from lcl_composer.report.metrics_file import last_step
from lcl_composer.stop_request import Stopped

#: What is run, by the shell, and what is posted to: never in a YAML, which may come from anywhere.
COMMAND, WEBHOOK = "LCL_NOTIFY_COMMAND", "LCL_NOTIFY_WEBHOOK"

#: Seconds that a run's processes may be kept for it.
_LONGEST = 3600

Ending = Literal["finished", "failed", "stopped"]


class Notify(Callback):
    """Run a command, or post to a webhook, when the run is finished, has failed, or was stopped.

    Both are in the environment: LCL_NOTIFY_COMMAND, for the shell, and LCL_NOTIFY_WEBHOOK, an address that
    may hold a secret and is never printed. The command gets JSON on its standard input, the webhook as body
    of a POST: ``run``, ``state`` (``finished``, ``failed`` or ``stopped``), ``cause`` (a line, or null),
    ``batch`` (the last one logged), ``folder``, ``host``, and all of it as a sentence, ``text`` (as Slack,
    Mattermost and Teams read it) and ``content`` (Discord).

    Rank 0 tells, whatever happens once the YAML is checked; of a process that SIGKILL ends nobody is told.
    What does not work is said once and changes nothing for the run.

    Args:
        timeout: Seconds that each of the two may take.

    Raises:
        ValueError: If ``timeout`` is not above 0, or more than an hour.
    """

    def __init__(self, timeout: float = 10.0):
        if not 0 < timeout <= _LONGEST:
            raise ValueError(f"timeout is {timeout}; it takes seconds above 0, {_LONGEST} at most")
        self.timeout = timeout

    def tell(self, run: str, state: Ending, cause: str | None) -> None:
        """Tell both that are set; never raises, and returns after twice the timeout at the latest."""
        folder = Path("runs") / run
        batch = last_step(folder / "metrics.jsonl")
        text = f"{run} {state} after batch {batch}" + (f": {cause}" if cause else "")
        facts = {"run": run, "state": state, "cause": cause, "batch": batch, "folder": str(folder.resolve())}
        facts |= {"host": socket.gethostname(), "text": text, "content": text[:2000]}
        body = json.dumps(facts).encode()
        command, address = os.environ.get(COMMAND), os.environ.get(WEBHOOK)
        if command:
            self._bounded(COMMAND, lambda: _run(command, body, self.timeout))
        if address:
            self._bounded(WEBHOOK, lambda: _post(address, body, self.timeout))
        if not command and not address:
            print(
                f"note: callbacks.notify: neither {COMMAND} nor {WEBHOOK} is set; nobody is told", flush=True
            )

    def _bounded(self, what: str, call: Callable[[], None]) -> None:
        """Call in a thread, and leave it behind if it takes too long; say what went wrong."""
        problems = ["it took too long"]

        def attempt() -> None:
            try:
                call()
                problems.clear()
            except Exception as error:  # of any kind: a run does not fail for it
                problems[:] = [f"{type(error).__name__}: {one_line(error, 120)}"]

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(self.timeout + 1)
        if problems:
            reason = problems[0].replace(os.environ.get(what, "") or "\0", f"${what}")
            print(f"note: callbacks.notify: {what} could not be told: {reason}", flush=True)


def _run(command: str, body: bytes, timeout: float) -> None:
    """Run a command with its standard input; kill it and what it started if it takes too long."""
    process = subprocess.Popen(command, shell=True, stdin=subprocess.PIPE, start_new_session=True)
    try:
        process.communicate(body, timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise TimeoutError("it took too long") from None
    if process.returncode:
        raise RuntimeError(f"it ended with {process.returncode}")


def _post(address: str, body: bytes, timeout: float) -> None:
    """POST JSON; raises OSError if that is refused."""
    if urlsplit(address).scheme not in ("http", "https"):
        raise ValueError("it is no address of http or https")
    request = Request(address, body, {"Content-Type": "application/json", "User-Agent": "lcl-composer"})
    with urlopen(request, timeout=timeout) as answer:
        answer.read(1 << 16)


@contextmanager
def told(run: str, callbacks: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Tell how the body ends, if the run's callbacks have ``notify`` and this is rank 0.

    Args:
        run: The run's name.
        callbacks: Parameters by name, as in the YAML.
    """
    if "notify" not in callbacks or os.environ.get("RANK", "0") != "0":
        yield
        return
    notify = Notify(**callbacks["notify"])
    try:
        yield
    except BaseException as error:
        notify.tell(run, *_ending(error))
        raise
    notify.tell(run, "finished", None)


def _ending(error: BaseException) -> tuple[Ending, str | None]:
    """What an exception that leaves a run says of it."""
    if isinstance(error, Stopped):
        return "stopped", one_line(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "interrupted"
    return "failed", one_line(error) or type(error).__name__
