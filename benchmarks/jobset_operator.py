"""Builds and runs JobSet with its agent for restarts in place, to be measured beside this operator.

Its webhooks are not registered, which spares it their calls: jobs are written with the defaults that they would set.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("operator", "trainer", ".")]

from local_cluster import control_plane
from local_cluster.control_plane import ControlPlane, end_with_parent, free_port
from local_cluster.control_plane_binaries import Programs, cache_folder, copy_of_module, get, go_toolchain, run_go
from local_cluster.wait import is_ready, wait_until
from tests.support.operator.job_client import CRDS

VERSION = "v0.11.0"
MODULE = "sigs.k8s.io/jobset"
PROGRAM, AGENT, CRD = "jobset", "in-place-restart-agent", "crd.yaml"
API = "/apis/jobset.x-k8s.io/v1alpha2"
MOST = 2**31 - 1
"""The back-off limit that InPlaceRestart demands."""
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
ATTEMPT = "metadata.labels['jobset.sigs.k8s.io/restart-attempt']"
AGENT_RULES = [
    {"apiGroups": ["jobset.x-k8s.io"], "resources": ["jobsets"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch", "update"]},
]

Object = Mapping[str, Any]


def find_or_get() -> Path:
    """The folder with controller, agent and CRD; built once (two minutes)."""
    return get(Programs(names=(PROGRAM, AGENT, CRD), folder=cache_folder().parent / f"jobset-{VERSION}", ways=(build,)))


def build(work: Path) -> bool:
    """Whether they could be built from the Go module into `work`."""
    with go_toolchain(work) as go:
        if not go:
            return False
        source = copy_of_module(go, work, MODULE, VERSION)
        for name, package in ((PROGRAM, "."), (AGENT, f"./cmd/{AGENT}")):
            run_go(go, source, "build", "-ldflags", "-s -w", "-o", str(work / name), package)
        (source / "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml").rename(work / CRD)
    return True


@contextlib.contextmanager
def running(plane: ControlPlane, folder: Path) -> Iterator[Path]:
    """Installs JobSet and runs its controller; yields the agent's program."""
    built = find_or_get()
    plane.create(CRDS, yaml.safe_load((built / CRD).read_text()))
    wait_until(lambda: _is_served(plane), bool, "JobSet to be served")
    health, certificates = free_port(), folder / "jobset-certificates"
    certificates.mkdir()
    for ending in ("crt", "key"):  # of a server that no one calls, but which has to start
        shutil.copy(plane.folder / f"admin.{ending}", certificates / f"tls.{ending}")
    (folder / "jobset.yaml").write_text(yaml.safe_dump(_settings(health, certificates)))
    command = [built / PROGRAM, f"--kubeconfig={plane.kubeconfig}", f"--config={folder}/jobset.yaml"]
    with (folder / "jobset.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=end_with_parent)
    try:
        wait_until(lambda: is_ready(health), bool, "JobSet to be ready", patience_s=60)
        yield built / AGENT
    finally:
        process.kill()
        process.wait()


def job(pod_spec: Object, command: list[str], *, in_place: bool) -> Object:
    """A JobSet of one job with two pods. command: of the trainer; in place the agent runs it."""
    container, *_ = pod_spec["containers"]
    env = [*container["env"], _field("NODE_RANK", INDEX)]
    limit, more = 0, {}
    if in_place:
        limit, more = MOST, {"podReplacementPolicy": "Failed"}
        line = " ".join(command)
        env += [
            _field("POD_NAME", "metadata.name"),
            {"name": "JOBSET_NAME", "value": "job"},
            {"name": "IN_PLACE_RESTART_EXIT_CODE", "value": "85"},
            {"name": "WORKER_COMMAND", "value": f"exec {line}"},
        ]
        command = [f"/agent/{AGENT}"]
    else:
        env.append(_field("MTJ_RESTART_ATTEMPT", ATTEMPT))
    container = {**container, "env": env, "command": command}
    restarts = "OnFailure" if in_place else "Never"
    spec = {**pod_spec, "restartPolicy": restarts, "containers": [container]}
    template = {
        "spec": {
            "completions": 2,
            "parallelism": 2,
            "completionMode": "Indexed",
            "backoffLimit": limit,
            **more,
            "template": {"spec": spec},
        }
    }
    strategy = "InPlaceRestart" if in_place else "Recreate"
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": "job"},
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "successPolicy": {"operator": "All"},
            "startupPolicy": {"startupPolicyOrder": "AnyOrder"},
            "failurePolicy": {"maxRestarts": 1000, "restartStrategy": strategy},
            "replicatedJobs": [{"name": "r", "replicas": 1, "template": template}],
        },
    }


def allow_agent(plane: ControlPlane, namespace: str) -> None:
    """Lets the pods of a namespace do what the agent does."""
    roles = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    plane.create(f"{roles}/roles", {"metadata": {"name": "agent"}, "rules": AGENT_RULES})
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "agent"}
    plane.create(f"{roles}/rolebindings", {"metadata": {"name": "agent"}, "roleRef": reference, "subjects": [subject]})


def _field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _settings(health_port: int, certificates: Path) -> Object:
    return {
        "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "webhook": {"port": free_port(), "certDir": str(certificates)},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health_port}"},
        "metrics": {"bindAddress": "127.0.0.1:0"},
        "clientConnection": {"qps": 500, "burst": 500},
        "featureGates": {"InPlaceRestart": True},
    }


def _is_served(plane: ControlPlane) -> bool:
    try:
        return plane.get(f"{API}/jobsets") is not None
    except control_plane.Refused:
        return False
