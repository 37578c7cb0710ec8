"""Runs the real Kueue controller beside the control plane of a test, and makes the queues that jobs wait in.

What a cluster does for Kueue's own deployment is done here by hand: its service is the name of this machine, and the
certificates that Kueue makes for itself are put where a Secret volume would show them.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from local_cluster import kueue_binaries
from local_cluster.control_plane import ControlPlane, Refused, free_port
from local_cluster.wait import is_ready
from tests.support.operator import fake_kubelet, job_client, operator_process
from tests.support.operator.fake_kubelet import FakeKubelet
from tests.support.operator.job_client import CRDS, wait_until

Object = Mapping[str, Any]
API = "/apis/kueue.x-k8s.io/v1beta2"
ADMISSION_API = "/apis/admissionregistration.k8s.io/v1"
NAMESPACE = "kueue-system"
SERVICE, SECRET = "kueue-webhook-service", "kueue-webhook-server-cert"
CONVERTED = frozenset({"localqueues", "clusterqueues", "workloads", "cohorts", "multikueueclusters"})
EXTERNAL_FRAMEWORK = "MegatronTrainJob.v1alpha1.megatrontrain.dev"
GPU = "nvidia.com/gpu"
FLAVOR = "spot"
QUEUE = "team-a"
URGENT = "urgent"
READY_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the controller listens on this machine."""

    webhook: int
    health: int


def serving(folder: Path, *external_frameworks: str, **variables: str) -> Iterator[ControlPlane]:
    """A control plane with Kueue, one flavor, one priority, fake kubelets and an operator with these settings."""
    for plane in job_client.serving(folder):
        start(plane, *external_frameworks)
        add_flavor(plane)
        add_priority(plane)
        with (
            fake_kubelet.playing(FakeKubelet(kubeconfig=plane.kubeconfig)),
            operator_process.running(plane.kubeconfig, folder, **variables),
        ):
            yield plane


def start(plane: ControlPlane, *external_frameworks: str) -> None:
    """Installs Kueue on this control plane and starts its controller; returns when it works. Ends with the plane."""
    built, ports = kueue_binaries.find_or_get(), Ports(webhook=free_port(), health=free_port())
    for manifest in manifests(built / kueue_binaries.MANIFESTS):
        install(plane, manifest, ports.webhook)
    make_reachable(plane, ports.webhook)
    path = plane.folder / "kueue.yaml"
    path.write_text(yaml.safe_dump(configuration(plane, ports, external_frameworks)))
    arguments = (f"--config={path}", f"--kubeconfig={plane.kubeconfig}", "--zap-log-level=3")
    plane.launch("kueue", built / kueue_binaries.PROGRAM, *arguments)
    mount_certificates(plane)
    wait_ready(plane, ports)


def make_reachable(plane: ControlPlane, port: int) -> None:
    """Makes Kueue's namespace, the Secret for its certificates, and its service, which leads to this machine."""
    namespace = f"/api/v1/namespaces/{NAMESPACE}"
    plane.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    plane.create(f"{namespace}/secrets", {"metadata": {"name": SECRET}})
    spec = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}
    plane.create(f"{namespace}/services", {"metadata": {"name": SERVICE}, "spec": spec})


def manifests(folder: Path) -> Iterator[dict[str, Any]]:
    """Every object of the manifests in this folder."""
    for path in sorted(folder.glob("*.yaml")):
        yield from (each for each in yaml.safe_load_all(path.read_text()) if each)


def install(plane: ControlPlane, manifest: dict[str, Any], port: int) -> None:
    """Makes one CRD or webhook configuration, its webhook behind this port."""
    if manifest["kind"] == "CustomResourceDefinition":
        if manifest["spec"]["names"]["plural"] in CONVERTED:
            webhook = {"clientConfig": {"service": service("/convert", port)}, "conversionReviewVersions": ["v1"]}
            manifest["spec"]["conversion"] = {"strategy": "Webhook", "webhook": webhook}
        plane.create(CRDS, manifest)
    else:
        manifest["metadata"]["name"] = f"kueue-{manifest['metadata']['name']}"
        for each in manifest["webhooks"]:
            each["clientConfig"] = {"service": service(each["clientConfig"]["service"]["path"], port)}
        plane.create(f"{ADMISSION_API}/{manifest['kind'].lower()}s", manifest)


def service(path: str, port: int) -> Object:
    """How the API server reaches the controller."""
    return {"namespace": NAMESPACE, "name": SERVICE, "path": path, "port": port}


def certificates(plane: ControlPlane) -> Path:
    """The folder in which the controller looks for its certificate."""
    return plane.folder / "kueue-certificates"


def configuration(plane: ControlPlane, ports: Ports, external_frameworks: tuple[str, ...]) -> Object:
    """The controller's configuration: pods are queued, and what is listed queues itself."""
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"127.0.0.1:{ports.health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"port": ports.webhook, "certDir": str(certificates(plane))},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": True, "webhookServiceName": SERVICE, "webhookSecretName": SECRET},
        "integrations": {"frameworks": ["pod"], "externalFrameworks": list(external_frameworks)},
        "featureGates": {"VisibilityOnDemand": False},
    }


def mount_certificates(plane: ControlPlane) -> None:
    """Puts the Secret that the controller fills into its folder."""
    secret = f"/api/v1/namespaces/{NAMESPACE}/secrets/{SECRET}"
    data = wait_until(lambda: plane.get(secret).get("data") or {}, lambda d: "tls.crt" in d, "Kueue's certificate")
    folder = certificates(plane)
    folder.mkdir()
    for name, content in data.items():
        (folder / name).write_bytes(base64.b64decode(content))


def wait_ready(plane: ControlPlane, ports: Ports) -> None:
    """Returns once the controller says that it is ready and its webhook answers; raises with its log otherwise."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and plane.processes["kueue"].poll() is None:
        if is_ready(ports.health) and is_asked(plane):
            return
        time.sleep(0.2)
    raise RuntimeError(f"Kueue did not become ready:\n{(plane.folder / 'kueue.log').read_text()[-4000:]}")


def is_asked(plane: ControlPlane) -> bool:
    """Whether the API server reaches the webhooks; nothing is stored."""
    try:
        plane.create(f"{API}/resourceflavors", named("ResourceFlavor", "probe", spec={}), dryRun="All")
    except Refused as refused:
        if refused.status != 500:
            raise
        return False
    return True


def named(kind: str, name: str, **fields: object) -> Object:
    """An object of Kueue's API."""
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": {"name": name}, **fields}


def add_flavor(plane: ControlPlane) -> None:
    """Nodes of a pool of their own, which all queues hand out."""
    spec = {"nodeLabels": {"pool": FLAVOR}, "tolerations": [{"key": FLAVOR, "operator": "Exists"}]}
    plane.create(f"{API}/resourceflavors", named("ResourceFlavor", FLAVOR, spec=spec))


def add_priority(plane: ControlPlane) -> None:
    """A priority above that of jobs that name none."""
    plane.create(f"{API}/workloadpriorityclasses", named("WorkloadPriorityClass", URGENT, value=1000))


def add_queue(plane: ControlPlane, namespace: str, name: str = QUEUE, *, flavor: str = FLAVOR, num_gpus: int) -> None:
    """A queue of this namespace whose jobs may use so many GPUs at a time; a higher priority preempts."""
    cluster_queue = f"{namespace}-{name}"
    quota = {"name": GPU, "nominalQuota": num_gpus}
    spec = {
        "namespaceSelector": {},
        "resourceGroups": [{"coveredResources": [GPU], "flavors": [{"name": flavor, "resources": [quota]}]}],
        "preemption": {"withinClusterQueue": "LowerPriority"},
    }
    plane.create(f"{API}/clusterqueues", named("ClusterQueue", cluster_queue, spec=spec))
    queue = named("LocalQueue", name, spec={"clusterQueue": cluster_queue})
    plane.create(f"{API}/namespaces/{namespace}/localqueues", queue)
    path = f"{API}/clusterqueues/{cluster_queue}"
    wait_until(lambda: plane.get(path).get("status") or {}, is_active, "the queue to be active")


def is_active(status: Object) -> bool:
    """Whether a ClusterQueue admits."""
    return any(each["type"] == "Active" and each["status"] == "True" for each in status.get("conditions") or ())
