"""A Hugging Face Hub on this machine, as far as an upload sees one."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """What was made and committed.

    Attributes:
        made: Bodies of requests for a new repository.
        files: Path to bytes of the files of all commits, by repository.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, dict[str, bytes]] = {}

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        """No file is there before the first commit."""
        self._answer(404, {"error": "Entry not found"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Make a repository, say how files are to be sent, take a commit."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0].split("/")
        if self.headers.get("Authorization") != "Bearer hf_right":
            self._answer(401, {"error": "Invalid user token."})
        elif path[2:] == ["repos", "create"]:
            self.server.made.append(json.loads(body))
            name = f"{self.server.made[-1].get('organization', 'me')}/{self.server.made[-1]['name']}"
            self._answer(200, {"url": f"{self.server.url}/{name}", "name": name, "id": "1"})
        elif path[2] == "validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path[5] == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in files]
            self._answer(200, {"files": modes})
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            sent = [line["value"] for line in lines if line["key"] == "file"]
            name = "/".join(path[3:5])
            kept = self.server.files.setdefault(name, {})
            kept |= {file["path"]: base64.b64decode(file["content"]) for file in sent}
            self._answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/1", "commitOid": "1" * 40})

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def listening() -> Iterator[Hub]:
    """A hub that answers until the block ends; the token ``hf_right`` opens it."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
