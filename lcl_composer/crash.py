"""What a run says when it dies of something that no check foresaw: one line, and where the rest stands."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lcl_composer.errors import LCLError, LostConnection, one_line, without_passwords

#: Words in the messages of torch's checkpoint writer when the disk takes no more.
_WRITE_FAILED = ("unexpected pos", "file write failed", "PytorchStreamWriter failed", "No space left")
#: Words in the messages of gloo, NCCL and torch's store when another rank is gone or does not answer.
_PEER_LOST = (
    "Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe",
    "remote process exited", "ncclRemoteError", "failed to connect", "failed to recv",
    "communicator was aborted", "connectFullMesh failed",
)  # fmt: skip
_PEER_SILENT = ("Timed out waiting", "timed out", "Timeout", "timeout")
#: What the mentioned three raise.
_OF_TORCH = {"RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError"}
#: Words in the messages of torch, Streaming and NCCL when shared memory takes no more.
_SHARED_MEMORY = ("/dev/shm", "torch_shm_manager", "shared memory", "Bus error", "/torch_")
#: Words in the names of what S3, GCS, Azure, OCI and the hub raise without credentials.
_CREDENTIALS = ("NoCredentials", "PartialCredentials", "DefaultCredentials", "ClientAuthentication")


@contextmanager
def told_in_one_line(folder: Path, checkpoints: str = "") -> Iterator[None]:
    """Write the traceback of an unforeseen error to ``folder/crash-rank0.log`` and raise one line instead.

    Args:
        folder: The run folder, ``runs/NAME``.
        checkpoints: That of the checkpoints, which may be on another disk; "": in the run folder.

    Raises:
        LostConnection: Another rank is gone or does not answer.
        LCLError: Names the cause and the file.
    """
    try:
        yield
    except LCLError:
        raise
    except Exception as error:
        log = folder / f"crash-rank{os.environ.get('RANK', '0')}.log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            log.write_text(without_passwords("".join(traceback.format_exception(error))))
            rest = f"the traceback is in {log}"
        except OSError as unwritten:  # the disk may be what is full
            rest = f"the traceback could not be written to {log} ({unwritten.strerror})"
        if text := lost_connection(error):
            raise LostConnection(text) from error
        raise LCLError(f"{cause(error, folder, checkpoints)}; {rest}") from error


def cause(error: BaseException, folder: Path, checkpoints: str = "") -> str:
    """Return what an error comes from, in a line for those who did not write the code."""
    for link in _chain(error):
        name, text = type(link).__name__, str(link)
        if _wants_shared_memory(link):
            return (
                f"/dev/shm is full ({_free('/dev/shm')}; {_first_line(text)}): give it more (docker "
                "run --shm-size, a Memory volume in Kubernetes), lower data.train.num_workers, or clear it"
            )
        if getattr(link, "errno", None) == errno.ENOSPC or any(words in text for words in _WRITE_FAILED):
            places = [folder, folder / "checkpoints", Path(checkpoints or folder)]
            full = min(places, key=lambda place: shutil.disk_usage(_existing(place)).free)
            return (
                f"a file could not be written, the disk is full ({_free(_existing(full))} at {full}); "
                "make room and launch again: the run goes on from its newest whole checkpoint"
            )
        if "DataLoader worker" in text:
            return (
                f"a loader process died, often for want of memory ({_first_line(text)}); "
                "lower data.train.num_workers or the batch"
            )
        if any(words in name for words in _CREDENTIALS) or "Unable to locate credentials" in text:
            return f"the remote wants credentials and there are none ({name}: {_first_line(text)})"
        if name == "OutOfMemoryError":
            return f"the GPU's memory is too small ({_first_line(text)}); lower device_train_microbatch_size"
    return f"{type(error).__name__}: {one_line(error)}"


def lost_connection(error: BaseException) -> str:
    """What to say if an error only follows from another rank's end; empty for all others."""
    for link in _chain(error):
        text = str(link)
        if type(link).__name__ not in _OF_TORCH or _wants_shared_memory(link):
            continue
        if type(link) is RuntimeError and "gloo" not in text and "Timed out waiting" not in text:
            continue
        rank = f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}"
        if any(words in text for words in _PEER_LOST):
            what = f"{rank} lost its connection to another rank"
        elif any(words in text for words in _PEER_SILENT):
            what = f"{rank} got no answer from another rank within dist_timeout"
        else:
            continue
        return (
            f"{what}, and no rank of this node failed before: look at the last line of the other nodes; if "
            f"there is none, a node or the network is down, or a rank hangs ({one_line(link, 120)})"
        )
    return ""


def _wants_shared_memory(link: BaseException) -> bool:
    """Whether an error says that shared memory is full."""
    text = str(link)
    full = "No space left" in text or getattr(link, "errno", None) == errno.ENOSPC or "Bus error" in text
    if "DataLoader worker" in text and f"exit code {errno.ENOSPC}." in text:  # see _end_for_lost_batch
        return True
    name = str(getattr(link, "filename", "") or "")
    return any(words in f"{text} {name}" for words in _SHARED_MEMORY) and (
        full or "creating shared memory" in text or "out of shared memory" in text
    )


def _free(place: str | Path) -> str:
    return f"{shutil.disk_usage(place).free / 1e9:.2f} GB free"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, then what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first_line(text: str) -> str:
    return one_line(Exception(text.strip().partition("\n")[0]))


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.resolve()
    return next(place for place in (folder, *folder.parents) if place.exists())
