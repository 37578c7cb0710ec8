"""A real Kubernetes control plane on loopback for one test session: TLS, RBAC, free ports, stopped at the end.

etcd, kube-apiserver and kube-controller-manager; kube-scheduler with native gang scheduling where a test asks.
No nodes and no kubelets: fake_kubelet.py simulates them.
"""

from __future__ import annotations

import base64
import ctypes
import http.client
import json
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from local_cluster.control_plane_binaries import find_or_get

Object = Mapping[str, Any]
READY_S = 180
BUSY_S = 60
NUM_TRIES = 3
PORTS = (15_000, 32_000)
PR_SET_PDEATHSIG = 1
LOOPBACK = "127.0.0.1"
SERVICE_RANGE = "10.0.0.0/16"
NAMES = "IP:127.0.0.1,IP:10.0.0.1,DNS:localhost,DNS:kubernetes.default.svc"
FAKE_NODES = ("--controllers=*,-node-lifecycle-controller",)  # they have no kubelet that renews their lease
MERGE_PATCH = "application/merge-patch+json"

# Who did what: requests of service accounts outside kube-system, that is, of operators under test.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system", "system:masters", "system:nodes"]},
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "None"},
    ],
}


class Refused(Exception):
    """The API server's answer to a request that it refused."""

    def __init__(self, status: int, answer: Object) -> None:
        super().__init__(f"{status} {answer.get('message')}")
        self.status = status
        self.reason: str = answer.get("reason", "")
        self.message: str = answer.get("message", "")


@dataclass(kw_only=True)
class ControlPlane:
    """A running control plane; its files and logs lie in `folder`."""

    folder: Path
    binaries: Path
    port: int
    etcd_port: int
    address: str = LOOPBACK
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    """Warnings that came with the last answer."""

    @property
    def server(self) -> str:
        """URL of the API server."""
        return f"https://{self.address}:{self.port}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.folder / "kubeconfig"

    def request(
        self, method: str, path: str, body: Object | str | None = None, *, content_type: str = "application/json"
    ) -> Any:
        """The decoded answer to the administrator's request, tried again while the server is busy."""
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                return self._request_once(method, path, body, content_type)
            except Refused as refused:
                if refused.status != 429 or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _request_once(self, method: str, path: str, body: Object | str | None, content_type: str) -> Any:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        context.load_cert_chain(self.folder / "admin.crt", self.folder / "admin.key")
        connection = http.client.HTTPSConnection(self.address, self.port, context=context, timeout=120)
        try:
            data = body if body is None or isinstance(body, str) else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": content_type})
            response = connection.getresponse()
            payload = response.read()
            self.warnings[:] = response.headers.get_all("Warning") or []
        except http.client.HTTPException as error:  # the server ended in the middle of its answer
            raise ConnectionError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        is_json = "json" in response.headers.get("Content-Type", "")
        answer = json.loads(payload) if is_json else payload.decode()
        if response.status >= 400:
            raise Refused(response.status, answer if is_json else {"message": answer})
        return answer

    def get(self, path: str) -> Any:
        """What is there, or None."""
        try:
            return self.request("GET", path)
        except Refused as refused:
            if refused.status == 404:
                return None
            raise

    def create(self, path: str, body: Object, **query: str) -> Any:
        """The object as the server created it."""
        return self.request("POST", f"{path}?{urlencode(query)}" if query else path, body)

    def merge(self, path: str, body: Object) -> Any:
        """The object after a merge patch."""
        return self.request("PATCH", path, body, content_type=MERGE_PATCH)

    def delete(self, path: str, body: Object | None = None) -> Any:
        """The server's answer to a deletion."""
        return self.request("DELETE", path, body)

    def audit(self) -> list[Object]:
        """What service accounts asked for since the server began, refused requests too."""
        return [json.loads(line) for line in (self.folder / "audit.log").read_text().splitlines()]

    def start_process(self, name: str, *arguments: str) -> None:
        """Starts one of the control plane's programs, its output in NAME.log."""
        self.launch(name, self.binaries / ("kube-" + name if name != "etcd" else name), *arguments)

    def launch(self, name: str, program: Path | str, *arguments: str) -> None:
        """Starts a program that ends with the control plane, its output in NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [program, *arguments],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def stop_process(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends one program. State is throw-away, so nothing is waited for but its end."""
        process = self.processes.pop(name)
        process.send_signal(number)
        process.wait()

    def ended(self) -> list[str]:
        """The programs that were started and run no more by themselves."""
        return [name for name, process in self.processes.items() if process.poll() is not None]

    def stop(self) -> None:
        """Ends every program, the ones that depend on others first."""
        for name in reversed(list(self.processes)):
            self.stop_process(name)

    def start_etcd(self) -> None:
        """Starts the store; without fsync, nothing here outlives the session."""
        client, peer = f"http://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{free_port()}"
        self.start_process(
            "etcd",
            f"--data-dir={self.folder}/etcd",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=error",
        )

    def start_apiserver(self, *more: str) -> None:
        """Starts the API server and waits until it is ready."""
        self.start_process(
            "apiserver",
            f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
            f"--secure-port={self.port}",
            f"--bind-address={self.address}",
            "--tls-cert-file=server.crt",
            "--tls-private-key-file=server.key",
            "--client-ca-file=ca.crt",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=sa.pub",
            "--service-account-signing-key-file=sa.key",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--allow-privileged=true",
            "--feature-gates=GenericWorkload=true",
            "--runtime-config=scheduling.k8s.io/v1beta1=true",
            "--audit-policy-file=audit-policy.yaml",
            "--audit-log-path=audit.log",
            *more,
        )
        self.wait_ready()

    def wait_ready(self) -> None:
        """Returns once the API server says that it is ready; raises with the end of its log otherwise."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self.processes["apiserver"].poll() is None:
            try:
                self.request("GET", "/readyz")
            except (OSError, Refused):
                time.sleep(0.1)
            else:
                return
        log = (self.folder / "apiserver.log").read_text()[-3000:]
        raise RuntimeError(f"kube-apiserver did not become ready:\n{log}")

    def start_controller_manager(self, *more: str) -> None:
        """Starts the controllers (garbage collection, service accounts and the rest)."""
        self.start_process(
            "controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            "--service-account-private-key-file=sa.key",
            "--root-ca-file=ca.crt",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--secure-port=0",
            *more,
        )

    def start_scheduler(self) -> None:
        """Starts the scheduler with native gang scheduling."""
        self.start_process(
            "scheduler",
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            "--secure-port=0",
            "--feature-gates=GenericWorkload=true",
        )


def end_with_parent() -> None:
    """Has the kernel kill this process when the test session dies, however that happens (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """A TCP port of loopback that no one listens on, below the range from which clients' own ports are taken."""
    for _ in range(100):
        port = random.randrange(*PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError(f"no free port in {PORTS}")


def start(folder: Path) -> ControlPlane:
    """A control plane on loopback that answers, its state in `folder`. The caller stops it.

    A port that was free when it was chosen may be taken when a program wants it: then other ports are tried.
    """
    for tries_left in reversed(range(NUM_TRIES)):
        plane = prepare(folder)
        try:
            plane.start_etcd()
            plane.start_apiserver()
            plane.start_controller_manager(*FAKE_NODES)
        except RuntimeError:
            plane.stop()
            if not tries_left:
                raise
        except BaseException:
            plane.stop()
            raise
        else:
            return plane
    raise AssertionError("the last try returns or raises")


def prepare(folder: Path, address: str = LOOPBACK) -> ControlPlane:
    """A control plane that nothing of runs yet: free ports, certificates and a kubeconfig in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit-policy.yaml").write_text(json.dumps(AUDIT_POLICY))
    if not (folder / "ca.crt").exists():
        make_certificates(folder, address)
    plane = ControlPlane(
        folder=folder, binaries=find_or_get(), port=free_port(), etcd_port=free_port(), address=address
    )
    write_kubeconfig(plane)
    return plane


def make_certificates(folder: Path, address: str) -> None:
    """Writes the session's own authority, server and administrator certificates, and the token keys."""
    openssl(folder, "genrsa", "-out", "sa.key", "2048")
    openssl(folder, "rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
    subject = ("-days", "30", "-subj", "/CN=test-ca")
    openssl(folder, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.crt", *subject)
    certificate(folder, "admin", "/O=system:masters/CN=admin")
    certificate(folder, "server", "/CN=kube-apiserver", names=f"subjectAltName=IP:{address},{NAMES}")


def certificate(folder: Path, name: str, subject: str, *, names: str = "") -> None:
    """Writes NAME.crt and NAME.key, signed by the authority in `folder`."""
    (folder / f"{name}.ext").write_text(names)
    new_key = ("-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key")
    openssl(folder, "req", *new_key, "-out", f"{name}.csr", "-subj", subject)
    signed_by = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30")
    files = ("-in", f"{name}.csr", "-out", f"{name}.crt", "-extfile", f"{name}.ext")
    openssl(folder, "x509", "-req", *files, *signed_by)


def openssl(folder: Path, *arguments: str) -> None:
    """Runs openssl in `folder`; its output is shown only when it fails."""
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"openssl {' '.join(arguments)}:\n{done.stderr}")


def write_kubeconfig(plane: ControlPlane, *, name: str = "kubeconfig", token: str | None = None) -> Path:
    """Writes a kubeconfig of the administrator, or of the account behind `token`; its path."""

    def inline(file: str) -> str:
        return base64.b64encode((plane.folder / file).read_bytes()).decode()

    certificates = {"client-certificate-data": inline("admin.crt"), "client-key-data": inline("admin.key")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [
            {"name": "test", "cluster": {"server": plane.server, "certificate-authority-data": inline("ca.crt")}}
        ],
        "users": [{"name": "user", "user": {"token": token} if token else certificates}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
    }
    path = plane.folder / name
    path.write_text(yaml.safe_dump(config))
    return path
