"""A Hugging Face Hub in memory that takes uploads: it creates a repository and commits files, large ones inline."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_a_secret"


@dataclass
class FakeHub:
    """files: by path, of the only repository. created: what the repository was created with. messages: of commits.

    broken: the path of requests, or a part of it, that are answered with this status.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    refused: int = 0
    broken: tuple[str, int] | None = None

    def answer(self, method: str, path: str, body: bytes, *, token: str) -> tuple[int, Any]:
        """(status, JSON) of a request."""
        if token != f"Bearer {TOKEN}":
            self.refused += 1
            return 401, {"error": "Invalid credentials"}
        if self.broken and self.broken[0] in path:
            return self.broken[1], {"error": "not now"}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return 200, {"url": f"{self.url}/me/it", "name": "me/it", "id": "me/it"}
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        if "/commit/" in path:
            self._commit(body)
            return 200, {"commitUrl": f"{self.url}/me/it/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None}
        return 404, {"error": f"{method} {path}"}

    def _commit(self, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A running server."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            body = self._body()
            path = self.path.partition("?")[0]
            status, content = hub.answer(self.command, path, body, token=self.headers.get("Authorization", ""))
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = _reply

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def log_message(self, *_: object) -> None:
            """Tells nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()


@contextmanager
def _signed_in(url: str, token: str) -> Iterator[None]:
    """This process talks to that Hub with that token; "" is none."""
    import os

    from huggingface_hub import constants

    before, environment = (constants.ENDPOINT, constants.HF_HUB_OFFLINE), dict(os.environ)
    constants.ENDPOINT, constants.HF_HUB_OFFLINE = url, False
    os.environ |= {"HF_TOKEN": token, "HF_TOKEN_PATH": "/nonexistent"}
    try:
        yield
    finally:
        constants.ENDPOINT, constants.HF_HUB_OFFLINE = before
        os.environ.clear()
        os.environ.update(environment)


def export_to(url: str, token: str, given: dict[str, Any]) -> Any:
    """An export on a worker of the pool that is signed in."""
    from tests.support.ranks.exporting import export_here

    with _signed_in(url, token):
        return export_here(given)


def train_to(url: str, token: str, given: dict[str, Any], env: dict[str, Any] | None = None) -> Any:
    """A training run on a worker of the pool that is signed in."""
    from tests.support.ranks.tiny_run import train_rank

    with _signed_in(url, token):
        return train_rank(given, "sft", None, env or {})
