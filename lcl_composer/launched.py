"""One rank's process, from the command line to its exit code and the one line that says why it ended.

Exit codes: 0 the run came to its end; 1 an error; 128 and the signal's number where it was asked to stop (130
SIGINT, 138 SIGUSR1, 143 SIGTERM). Launched again after any but 0, a run goes on from its newest checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from lcl_composer import last_word
from lcl_composer.errors import LCLError, LostConnection, one_line
from lcl_composer.last_word import CUT_SHORT, ENDED, FAILED, FOLLOWED, STOPPED, Rank
from lcl_composer.preflight.world import World
from lcl_composer.stop_request import Stopped

#: Under which the first failure of a job is told to other nodes, in the store at which the ranks meet.
_KEY = "lcl_composer_failure"

#: Seconds in which a rank that lost its connection looks for the reason, and rank 0 answers other nodes.
_LOOK_FOR = 5.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def run(arguments: list[str]) -> int | str:
    """Train as the command line says.

    Args:
        arguments: The YAML and what is laid over it.

    Returns:
        What ``sys.exit`` takes: an exit code, or the line of an error.
    """
    if not arguments:
        return "usage: composer train.py YAML [a.b=c ...]"
    for number in _SIGNALS:
        signal.signal(number, _end)
    if "GROUP_RANK" in os.environ:  # torchrun's name for what Composer calls NODE_RANK, and asks for
        os.environ.setdefault("NODE_RANK", os.environ["GROUP_RANK"])
    try:
        World.given()
    except LCLError as error:
        return f"error: {error}"
    rank = last_word.begin()
    try:
        from lcl_composer.train import train

        train(Path(arguments[0]), arguments[1:])
    except Stopped as stopped:
        if rank:
            rank.note(STOPPED, str(stopped))
        if os.environ.get("RANK", "0") == "0":
            print(stopped, flush=True)
        return stopped.exit_code
    except LostConnection as error:
        return _followed(rank, error)
    except LCLError as error:
        _failed(rank, str(error))
        return f"error: {error}"
    except SystemExit as end:
        return _cut_short(rank, end.code if isinstance(end.code, int) else 1)
    except KeyboardInterrupt:
        return _cut_short(rank, 128 + signal.SIGINT)
    except BaseException as error:
        _failed(rank, f"{type(error).__name__}: {one_line(error)}")
        raise
    if rank:
        rank.note(ENDED)
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    """End where there is no batch to finish, as Composer does; its import replaces this for two of them."""
    sys.exit(128 + number)


def _failed(rank: Rank | None, text: str) -> None:
    """Write down an error that began in this rank, and tell it to the other nodes."""
    if rank is None:
        return
    _ignore_signals()
    rank.note(FAILED, text)
    _write_for_torchrun(text)
    if _nodes() > 1:
        _tell(f"rank {rank.rank}: {text}")


def _followed(rank: Rank | None, error: LostConnection) -> str:
    """Find out why another rank is gone; returns the line to end with."""
    text = str(error)
    if rank is not None:
        _ignore_signals()  # the launcher ends all ranks once one has failed
        deadline = time.monotonic() + _LOOK_FOR
        found = ""
        while not found and time.monotonic() < deadline:
            time.sleep(0.1)
            found = rank.cause_elsewhere() or (_told() if _nodes() > 1 else "")
        text = found or text
        rank.note(FOLLOWED, text)
        _write_for_torchrun(text)
        if found and _nodes() > 1:
            _tell(found)
        print(f"error: {text}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # taking down what connects the ranks may wait for those that are gone
    return f"error: {text}"


def _cut_short(rank: Rank | None, code: int) -> int:
    """A signal ended the process: the first time before there was a batch to finish, or once more."""
    asked = code - 128
    if asked not in map(int, _SIGNALS):
        return code
    _ignore_signals()
    name = signal.Signals(asked).name
    text = f"ended by {name} at once; launched again the run goes on from its newest checkpoint"
    if rank:
        rank.note(CUT_SHORT, text)
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)
    if asked == signal.SIGINT:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # at once: no waiting for threads, uploads or other ranks
    return code


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _nodes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) // max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def _write_for_torchrun(text: str) -> None:
    """Fill in the file that torchrun's summary takes the cause from."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}))


def _tell(text: str) -> None:
    """Leave a failure with rank 0, unless there is one, and let rank 0 live until others have asked."""
    answer = _ask_store(lambda store: store.compare_set(_KEY, "", text))
    if answer is not None and os.environ["RANK"] == "0":
        time.sleep(_LOOK_FOR)


def _told() -> str:
    """The failure that another node has told; empty if there is none."""
    answer = _ask_store(lambda store: store.get(_KEY) if store.check([_KEY]) else b"")
    return answer.decode() if answer else ""


def _ask_store(question: Callable[[Any], bytes | None], seconds: float = 2.0) -> bytes | None:
    """Ask the store, which dies with rank 0 and, behind a cut network, does not answer."""
    answers: list[bytes | None] = []

    def ask() -> None:
        from torch.distributed import distributed_c10d

        with suppress(Exception):
            answers.append(question(distributed_c10d._get_default_store()))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None
