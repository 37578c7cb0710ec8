"""Builds and runs kubeflow/training-operator (PyTorchJob), to be measured beside this operator.

It is tuned: eight threads, and 1,000 requests a second, for which it has no flag, so that one line of its main is
changed before it is built. Its validating webhook is on; the kubelet that mounts its certificate is simulated, in a
file system of the program's own: other operators read theirs from the same folder. That needs root.
"""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("operator", "trainer", ".")]

from local_cluster.control_plane import (
    ControlPlane,
    end_with_parent,
    free_port,
)
from local_cluster.control_plane_binaries import (
    Programs,
    cache_folder,
    copy_of_module,
    get,
    go_toolchain,
    run_go,
)
from local_cluster.wait import is_ready
from megatron_operator.cluster.kubernetes.resource import Resource
from tests.support.operator.job_client import (
    CRDS,
    wait_until,
)

VERSION = "v1.8.1"
MODULE = "github.com/kubeflow/training-operator"
PROGRAM = "training-operator"
MANIFESTS = "manifests"
QPS, BURST, THREADS = 1000, 2000, 8
PYTORCHJOB = Resource(group="kubeflow.org", version="v1", kind="PyTorchJob", plural="pytorchjobs")
NAMESPACE = "kubeflow"
SERVICE, SECRET = "training-operator", "training-operator-webhook-cert"
WEBHOOKS = "validator.training-operator.kubeflow.org"
CERTIFICATES = Path(tempfile.gettempdir()) / "k8s-webhook-server" / "serving-certs"  # the operators' own, fixed choice

Object = Mapping[str, Any]


def find_or_get() -> Path:
    """The folder with the tuned program and, in a folder of their own, its manifests; built once (three minutes)."""
    folder = cache_folder().parent / f"{PROGRAM}-{VERSION}-qps-{QPS}"
    return get(Programs(names=(PROGRAM, MANIFESTS), folder=folder, ways=(build,)))


def build(work: Path) -> bool:
    """Whether program and manifests could be built from the Go module into `work`."""
    with go_toolchain(work) as go:
        if not go:
            return False
        source = copy_of_module(go, work, MODULE, VERSION)
        tune(source / "cmd" / "training-operator.v1" / "main.go")
        run_go(go, source, "build", "-o", str(work / PROGRAM), "./cmd/training-operator.v1")
        (source / "manifests" / "base").rename(work / MANIFESTS)
    return True


def tune(main: Path) -> None:
    """Lets its client ask as often as it likes."""
    plain, text = "mgr, err := ctrl.NewManager(ctrl.GetConfigOrDie(),", main.read_text()
    if plain not in text:
        raise SystemExit(f"{MODULE} does not make its client where it is to be tuned")
    tuned = f"client.QPS, client.Burst = {QPS}, {BURST}\n\tmgr, err := ctrl.NewManager(client,"
    main.write_text(text.replace(plain, f"client := ctrl.GetConfigOrDie()\n\t{tuned}"))


def job(index: int, workers: int, pod_spec: Object) -> Object:
    """A PyTorchJob of one master and so many workers."""
    replicas = {"restartPolicy": "Never", "template": {"spec": pod_spec}}
    counts = {"Master": 1, "Worker": workers}
    return {
        "apiVersion": PYTORCHJOB.api_version,
        "kind": PYTORCHJOB.kind,
        "metadata": {"name": f"job-{index}"},
        "spec": {"pytorchReplicaSpecs": {role: {"replicas": count, **replicas} for role, count in counts.items()}},
    }


@contextlib.contextmanager
def running(plane: ControlPlane, folder: Path, *flags: str) -> Iterator[int]:
    """Installs it on this control plane and runs it, with more flags; yields its process number once it is ready."""
    built, webhook_port, health_port = find_or_get(), free_port(), free_port()
    _install(plane, built / MANIFESTS, webhook_port)
    certificates = folder / f"{PROGRAM}-certificates"
    command = [
        *with_certificates(certificates),
        built / PROGRAM,
        f"--kubeconfig={plane.kubeconfig}",
        "--enable-scheme=pytorchjob",
        "--metrics-bind-address=127.0.0.1:0",
        f"--health-probe-bind-address=127.0.0.1:{health_port}",
        f"--webhook-server-port={webhook_port}",
        f"--controller-threads={THREADS}",
        *flags,
    ]
    with (folder / f"{PROGRAM}.log").open("ab") as log:
        environment = {**os.environ, "MY_POD_NAMESPACE": NAMESPACE}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=end_with_parent)
    try:
        write_certificates(plane, NAMESPACE, SECRET, certificates)
        wait_until(lambda: is_ready(health_port), bool, "the training operator to be ready", patience_s=60)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _install(plane: ControlPlane, manifests: Path, webhook_port: int) -> None:
    plane.create(CRDS, yaml.safe_load((manifests / "crds" / "kubeflow.org_pytorchjobs.yaml").read_text()))
    plane.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    plane.create(f"/api/v1/namespaces/{NAMESPACE}/secrets", {"metadata": {"name": SECRET}})
    address = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": webhook_port}]}
    plane.create(f"/api/v1/namespaces/{NAMESPACE}/services", {"metadata": {"name": SERVICE}, "spec": address})
    configuration = yaml.safe_load((manifests / "webhook" / "manifests.yaml").read_text())
    (webhook,) = [each for each in configuration["webhooks"] if "pytorchjob" in each["name"]]
    webhook["clientConfig"]["service"] |= {"name": SERVICE, "namespace": NAMESPACE, "port": webhook_port}
    kind = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    plane.create(kind, {**configuration, "metadata": {"name": WEBHOOKS}, "webhooks": [webhook]})


def with_certificates(folder: Path) -> list[Path | str]:
    """The start of a command whose program finds this folder where it looks for its certificate, and no other does."""
    for each in (folder, CERTIFICATES):
        each.mkdir(parents=True, exist_ok=True)
    return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', folder, CERTIFICATES]


def write_certificates(plane: ControlPlane, namespace: str, secret: str, folder: Path) -> None:
    """Writes the secret that an operator fills to where a kubelet would mount it."""
    path = f"/api/v1/namespaces/{namespace}/secrets/{secret}"
    data = wait_until(lambda: plane.get(path).get("data") or {}, lambda data: "tls.crt" in data, "its certificate")
    for name, value in data.items():
        (folder / name).write_bytes(base64.b64decode(value))
