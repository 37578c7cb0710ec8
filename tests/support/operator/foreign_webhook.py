"""Somebody else's admission webhook: refuses the pods of one namespace with whatever status it likes."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from local_cluster import control_plane
from local_cluster.control_plane import ControlPlane
from tests.support.operator.webhook_client import CONFIGURATIONS

Object = Mapping[str, Any]


@contextlib.contextmanager
def refusing(plane: ControlPlane, namespace: str, status: Object, *operations: str) -> Iterator[None]:
    """Pods of this namespace are refused with this status while the block lasts; operations: by default CREATE."""
    server = _server(plane, status)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    configuration = f"{CONFIGURATIONS}/{namespace}"
    plane.create(CONFIGURATIONS, _configuration(plane, namespace, server.server_port, operations or ("CREATE",)))
    try:
        yield
    finally:
        plane.delete(configuration)
        server.shutdown()
        server.server_close()


def _server(plane: ControlPlane, status: Object) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = {"uid": asked["request"]["uid"], "allowed": False, "status": status}
            body = json.dumps({**asked, "request": None, "response": answer}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    control_plane.certificate(plane.folder, "foreign", "/CN=foreign", names="subjectAltName=IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(plane.folder / "foreign.crt", plane.folder / "foreign.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


def _configuration(plane: ControlPlane, namespace: str, port: int, operations: tuple[str, ...]) -> Object:
    authority = base64.b64encode((plane.folder / "ca.crt").read_bytes()).decode()
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": list(operations), "resources": ["pods"]}
    webhook = {
        "name": "foreign.example.com",
        "clientConfig": {"url": f"https://127.0.0.1:{port}/", "caBundle": authority},
        "rules": [rule],
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
    }
    return {"metadata": {"name": namespace}, "webhooks": [webhook]}
