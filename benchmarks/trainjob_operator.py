"""Builds and runs Kubeflow Trainer v2 (TrainJob), to be measured beside this operator; it makes JobSets.

Its validating webhook is on; the kubelet that mounts its certificate is simulated, as for pytorchjob_operator.py.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("operator", "trainer", ".")]

import jobset_operator
import pytorchjob_operator

from local_cluster import control_plane
from local_cluster.control_plane import ControlPlane, end_with_parent, free_port
from local_cluster.control_plane_binaries import Programs, cache_folder, copy_of_module, get, go_toolchain, run_go
from local_cluster.wait import is_ready, wait_until
from tests.support.operator.job_client import CRDS

VERSION = "v2.0.0"
MODULE = "github.com/kubeflow/trainer/v2"
PROGRAM, MANIFESTS = "trainer-controller-manager", "manifests"
API = "/apis/trainer.kubeflow.org/v1alpha1"
NAMESPACE = "kubeflow-system"
SERVICE, SECRET = "kubeflow-trainer-controller-manager", "kubeflow-trainer-webhook-cert"
WEBHOOKS = "validator.trainer.kubeflow.org"
RUNTIME = "trainer"

Object = Mapping[str, Any]


def find_or_get() -> Path:
    """The folder with the program and, in a folder of their own, its manifests; built once (two minutes)."""
    folder = cache_folder().parent / f"kubeflow-trainer-{VERSION}"
    return get(Programs(names=(PROGRAM, MANIFESTS), folder=folder, ways=(build,)))


def build(work: Path) -> bool:
    """Whether program and manifests could be built from the Go module into `work`."""
    with go_toolchain(work) as go:
        if not go:
            return False
        source = copy_of_module(go, work, MODULE, VERSION)
        run_go(go, source, "build", "-ldflags", "-s -w", "-o", str(work / PROGRAM), f"./cmd/{PROGRAM}")
        (source / "manifests" / "base").rename(work / MANIFESTS)
    return True


def runtime(pod_spec: Object) -> Object:
    """A ClusterTrainingRuntime of these pods.

    restartPolicy, completionMode and network are as JobSet's webhook, which is not registered, would set them.
    """
    (container,) = pod_spec["containers"]
    spec = {**pod_spec, "restartPolicy": "OnFailure", "containers": [{**container, "name": "node"}]}
    template = {
        "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
        "spec": {
            "completionMode": "Indexed",
            "backoffLimit": jobset_operator.MOST,
            "template": {"spec": spec},
        },
    }
    job_set = {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "successPolicy": {"operator": "All"},
        "startupPolicy": {"startupPolicyOrder": "AnyOrder"},
        "failurePolicy": {"maxRestarts": 1000},
        "replicatedJobs": [{"name": "node", "replicas": 1, "template": template}],
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": RUNTIME},
        "spec": {"mlPolicy": {"numNodes": 2, "torch": {"numProcPerNode": 1}}, "template": {"spec": job_set}},
    }


def job(command: list[str]) -> Object:
    """A TrainJob of two pods of the runtime."""
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "job"},
        "spec": {
            "runtimeRef": {"name": RUNTIME},
            "trainer": {"numNodes": 2, "numProcPerNode": 1, "command": command},
        },
    }


@contextlib.contextmanager
def running(plane: ControlPlane, folder: Path) -> Iterator[None]:
    """Installs it on a control plane that has JobSet, and runs it until the end."""
    built, webhook_port, health_port = find_or_get(), free_port(), free_port()
    certificates = folder / f"{PROGRAM}-certificates"
    _install(plane, built / MANIFESTS, webhook_port)
    command = [
        *pytorchjob_operator.with_certificates(certificates),
        built / PROGRAM,
        f"--kubeconfig={plane.kubeconfig}",
        f"--health-probe-bind-address=127.0.0.1:{health_port}",
        f"--webhook-server-port={webhook_port}",
    ]
    with (folder / f"{PROGRAM}.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=end_with_parent)
    try:
        pytorchjob_operator.write_certificates(plane, NAMESPACE, SECRET, certificates)
        wait_until(lambda: is_ready(health_port), bool, "Kubeflow Trainer to be ready", patience_s=120)
        yield
    finally:
        process.kill()
        process.wait()


def _install(plane: ControlPlane, manifests: Path, webhook_port: int) -> None:
    for file in sorted((manifests / "crds").glob("trainer.kubeflow.org_*.yaml")):
        plane.create(CRDS, yaml.safe_load(file.read_text()))
    wait_until(lambda: _is_served(plane), bool, "Kubeflow Trainer to be served")
    plane.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    plane.create(f"/api/v1/namespaces/{NAMESPACE}/secrets", {"metadata": {"name": SECRET}})
    address = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": webhook_port}]}
    plane.create(f"/api/v1/namespaces/{NAMESPACE}/services", {"metadata": {"name": SERVICE}, "spec": address})
    configuration = yaml.safe_load((manifests / "webhook" / "manifests.yaml").read_text())
    for webhook in configuration["webhooks"]:
        webhook["clientConfig"]["service"] |= {"name": SERVICE, "namespace": NAMESPACE, "port": webhook_port}
    kind = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    plane.create(kind, {**configuration, "metadata": {"name": WEBHOOKS}})


def _is_served(plane: ControlPlane) -> bool:
    kinds = ("trainjobs", "trainingruntimes", "clustertrainingruntimes")
    try:
        return all(plane.get(f"{API}/{kind}") is not None for kind in kinds)
    except control_plane.Refused:
        return False
