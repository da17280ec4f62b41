"""What a run says when it dies of something that no check foresaw: one line, and where the rest stands."""

from __future__ import annotations

import errno
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lcl_composer.errors import LCLError, one_line

#: Words in the messages of torch's checkpoint writer when the disk takes no more.
_WRITE_FAILED = ("unexpected pos", "file write failed", "PytorchStreamWriter failed", "No space left")
#: Words in the names of what S3, GCS, Azure, OCI and the hub raise without credentials.
_CREDENTIALS = ("NoCredentials", "PartialCredentials", "DefaultCredentials", "ClientAuthentication")


@contextmanager
def told_in_one_line(folder: Path) -> Iterator[None]:
    """Write the traceback of an unforeseen error to ``folder/crash-rank0.log`` and raise one line instead.

    Args:
        folder: The run folder, ``runs/NAME``.

    Raises:
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
            log.write_text("".join(traceback.format_exception(error)))
            rest = f"the traceback is in {log}"
        except OSError as unwritten:  # the disk may be what is full
            rest = f"the traceback could not be written to {log} ({unwritten.strerror})"
        raise LCLError(f"{cause(error, folder)}; {rest}") from error


def cause(error: BaseException, folder: Path) -> str:
    """Return what an error comes from, in a line for those who did not write the code."""
    for link in _chain(error):
        name, text = type(link).__name__, str(link)
        if getattr(link, "errno", None) == errno.ENOSPC or any(words in text for words in _WRITE_FAILED):
            free = shutil.disk_usage(_existing(folder)).free
            return f"a file could not be written, the disk is full ({free / 1e9:.2f} GB free at {folder})"
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
