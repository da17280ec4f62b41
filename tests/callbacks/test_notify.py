"""A command and a webhook are told how a run ended, and nothing that they do harms it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lcl_composer.callbacks.notify import Notify, told
from lcl_composer.errors import ConfigError, LCLError
from lcl_composer.registry import callbacks
from lcl_composer.stop_request import Stopped
from tests.runs import run_alone, settings, write_yaml

SECRET = "T0K3N/s3cr3t"


class Hook(ThreadingHTTPServer):
    """A webhook on loopback: what it got, and what it answers."""

    daemon_threads = True
    got: list[dict[str, Any]]
    answer: int = 200
    wait: float = 0.0


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append({"path": self.path, **json.loads(body)})
        time.sleep(self.server.wait)
        self.send_response(self.server.answer)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hook]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LCL_NOTIFY_COMMAND", raising=False)
    server = Hook(("127.0.0.1", 0), _Handler)
    server.got = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("LCL_NOTIFY_WEBHOOK", f"http://127.0.0.1:{server.server_port}/{SECRET}")
    yield server
    server.shutdown()
    server.server_close()


def logged(folder: Path, steps: int) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in range(1, steps + 1)) + '{"st')


ON = {"notify": {"timeout": 5}}


def test_the_end_is_told(hook: Hook, tmp_path: Path) -> None:
    logged(tmp_path / "runs/tiny", 12)
    with told("tiny", ON):
        assert hook.got == []
    (got,) = hook.got
    assert (got["path"], got["run"], got["state"], got["batch"]) == (f"/{SECRET}", "tiny", "finished", 12)
    assert got["cause"] is None
    assert got["folder"] == str(tmp_path / "runs/tiny")
    assert got["text"] == got["content"] == "tiny finished after batch 12"


@pytest.mark.parametrize(
    ("error", "state", "cause"),
    [
        (LCLError("the disk\nis full"), "failed", "the disk is full"),
        (RuntimeError(""), "failed", "RuntimeError"),
        (KeyboardInterrupt(), "stopped", "interrupted"),
        (Stopped("stopped by SIGTERM after batch 3", 143), "stopped", "stopped by SIGTERM after batch 3"),
    ],
)
def test_a_failure_and_a_stop_are_told_with_their_cause(
    hook: Hook, error: BaseException, state: str, cause: str
) -> None:
    with pytest.raises(type(error)), told("tiny", ON):
        raise error
    (got,) = hook.got
    assert (got["state"], got["cause"], got["batch"]) == (state, cause, 0)


def test_the_first_rank_tells_alone_and_only_if_asked(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    with told("tiny", {}):
        pass
    monkeypatch.setenv("RANK", "1")
    with told("tiny", ON):
        pass
    assert hook.got == []


@pytest.mark.parametrize(("answer", "wait"), [(500, 0.0), (200, 9.0)])
def test_a_webhook_that_fails_costs_little_and_is_said_once(
    hook: Hook, capsys: pytest.CaptureFixture[str], answer: int, wait: float
) -> None:
    hook.answer, hook.wait = answer, wait
    begun = time.monotonic()
    with told("tiny", {"notify": {"timeout": 0.3}}):
        pass
    assert time.monotonic() - begun < 3
    out = capsys.readouterr().out
    assert out.count("note: callbacks.notify: LCL_NOTIFY_WEBHOOK could not be told") == 1
    assert len(out.splitlines()) == 1
    assert SECRET not in out


@pytest.mark.parametrize("before", ["file:///", "ftp://x/", "", "http://127.0.0.1:1/"])
def test_other_addresses_are_refused_without_being_printed(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], before: str
) -> None:
    monkeypatch.setenv("LCL_NOTIFY_WEBHOOK", before + SECRET)
    with told("tiny", {"notify": {"timeout": 2}}):
        pass
    out = capsys.readouterr().out
    assert "could not be told" in out
    assert SECRET not in out


def test_a_command_reads_the_facts(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("LCL_NOTIFY_WEBHOOK")
    monkeypatch.setenv("LCL_NOTIFY_COMMAND", "cat > told.json")
    evil = "x'; touch ran; '$(touch ran)"
    with pytest.raises(LCLError), told("tiny", ON):
        raise LCLError(evil)
    assert json.loads(Path("told.json").read_text())["cause"] == evil
    assert not Path("ran").exists(), "facts are no part of the command"
    for command, problem in (("exit 3", "it ended with 3"), ("sleep 30", "it took too long")):
        monkeypatch.setenv("LCL_NOTIFY_COMMAND", command)
        begun = time.monotonic()
        with told("tiny", {"notify": {"timeout": 0.3}}):
            pass
        assert time.monotonic() - begun < 3
        assert problem in capsys.readouterr().out


def test_without_either_it_says_so(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LCL_NOTIFY_WEBHOOK")
    Notify().tell("tiny", "finished", None)
    assert "neither LCL_NOTIFY_COMMAND nor LCL_NOTIFY_WEBHOOK is set" in capsys.readouterr().out


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes seconds above 0"):
        callbacks.build({"name": "notify", "timeout": 0.0})
    with pytest.raises(ConfigError, match="3600 at most"):
        callbacks.build({"name": "notify", "timeout": 1e12})


def test_a_run_that_cannot_begin_is_told(hook: Hook, tmp_path: Path) -> None:
    """Before there is a trainer, and so any callback."""
    code, output = run_alone(
        tmp_path, write_yaml(tmp_path, settings(tmp_path, callbacks={"notify": {}}))
    ).finish()
    assert code not in (0, None), output
    (got,) = hook.got
    assert got["state"] == "failed"
    assert got["cause"] in output
