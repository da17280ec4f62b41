from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from lcl_composer.crash import cause, lost_connection, told_in_one_line
from lcl_composer.errors import DataError, LCLError, LostConnection


class NoCredentialsError(Exception):
    """As botocore calls it."""


def raised_from(error: Exception, origin: Exception) -> Exception:
    error.__cause__ = origin
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc] unexpected pos 64 vs 0"), "the disk is full"),
        (raised_from(ValueError("x"), OSError(errno.ENOSPC, "No space")), "the disk is full"),
        (
            RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly\nmore"),
            "a loader process died, often for want of memory (DataLoader worker (pid(s) 12) exited unex",
        ),
        (
            raised_from(RuntimeError("download"), NoCredentialsError("Unable to locate credentials")),
            "the remote wants credentials and there are none (NoCredentialsError: Unable to locate",
        ),
        (KeyError("what"), "KeyError: 'what'"),
        (
            RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"),
            "/dev/shm is full",
        ),
        (RuntimeError("DataLoader worker (pid 9) is killed by signal: Bus error."), "/dev/shm is full"),
        (
            RuntimeError("DataLoader worker (pid 9) exited unexpectedly with exit code 28. Details"),
            "/dev/shm is full",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/dev/shm/000001_locals"), "/dev/shm is full"),
    ],
)
def test_causes(tmp_path: Path, error: Exception, message: str) -> None:
    said = cause(error, tmp_path / "runs/x")
    assert message in said
    assert "\n" not in said


def test_the_fullest_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small").mkdir()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda p: usage._replace(free=10**7 * (1 + 99 * (p.name != "small")))
    )
    said = cause(OSError(errno.ENOSPC, "No space"), tmp_path / "runs/x", str(tmp_path / "small"))
    assert f"the disk is full (0.01 GB free at {tmp_path / 'small'})" in said


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:9"),
            "lost its connection",
        ),
        (
            RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 20000ms"),
            "got no answer",
        ),
        (raised_from(ValueError("x"), RuntimeError("gloo: Connection reset by peer")), "lost its connection"),
        (RuntimeError("botocore: Connection reset by peer"), ""),
        (KeyError("gloo: Connection reset by peer"), ""),
        (OSError(errno.ENOSPC, "No space left on device"), ""),
    ],
)
def test_what_follows_from_another_rank(tmp_path: Path, error: Exception, expected: str) -> None:
    found = lost_connection(error)
    assert expected in found
    assert bool(found) == bool(expected)
    with pytest.raises(LCLError) as caught, told_in_one_line(tmp_path / "runs/x"):
        raise error
    assert isinstance(caught.value, LostConnection) == bool(expected)


def test_one_line_and_the_rest_in_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "runs/x"
    with pytest.raises(LCLError) as caught, told_in_one_line(folder):
        raise KeyError("what")
    assert str(caught.value) == f"KeyError: 'what'; the traceback is in {folder / 'crash-rank0.log'}"
    assert "in test_one_line_and_the_rest_in_a_file" in (folder / "crash-rank0.log").read_text()


def test_errors_with_a_line_of_their_own_and_exits_pass(tmp_path: Path) -> None:
    for error in (DataError("bad"), SystemExit(3), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, told_in_one_line(tmp_path):
            raise error
        assert caught.value is error
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file, no folder")
    match = r"KeyError: 'what'; the traceback could not be written to .*\(\w"
    with pytest.raises(LCLError, match=match), told_in_one_line(tmp_path / "runs/x"):
        raise KeyError("what")
