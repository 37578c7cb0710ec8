"""What jobs on the one-node cluster need: volumes that are folders of this machine, and the trainer's packages."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_cluster import one_node
from local_cluster.control_plane import ControlPlane
from local_cluster.images import ENVIRONMENT, SITE_PACKAGES, TRAINER_IMAGE

Object = Mapping[str, Any]
SIZE = {"storage": "5Gi"}


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Claims of one namespace; each is a folder below `folder`, which any user may write to."""

    plane: ControlPlane
    namespace: str
    folder: Path

    def claim(self, name: str) -> Path:
        """The folder of a claim."""
        return self.folder / name

    def kill(self, pod: str) -> None:
        """Ends the first process of a pod's container, as the kernel does when memory is short."""
        os.kill(one_node.container_pid(self.plane, self.namespace, pod), signal.SIGKILL)

    def offer(self, name: str, mode: str = "ReadWriteMany") -> None:
        """A volume for the claim of this name, which something else creates."""
        self.claim(name).mkdir(parents=True, exist_ok=True)
        self.claim(name).chmod(0o777)
        self._make_volume(name, self.claim(name), mode)

    def provide(self, name: str, folder: Path) -> None:
        """A claim that shows an existing folder, read only."""
        self._make_volume(name, folder, "ReadOnlyMany")
        spec = {"accessModes": ["ReadOnlyMany"], "storageClassName": "", "resources": {"requests": SIZE}}
        path = f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims"
        self.plane.create(path, {"metadata": {"name": name}, "spec": spec})

    def _make_volume(self, name: str, folder: Path, mode: str) -> None:
        spec = {
            "capacity": SIZE,
            "accessModes": [mode],
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": self.namespace, "name": name},
            "hostPath": {"path": str(folder), "type": "Directory"},
        }
        body = {"metadata": {"name": f"{self.namespace}-{name}"}, "spec": spec}
        self.plane.create("/api/v1/persistentvolumes", body)


def provide_environment(claims: Claims) -> None:
    """The claim with the Python packages that `on_the_node` mounts."""
    claims.provide("environment", SITE_PACKAGES)


def mount_environment_everywhere(plane: ControlPlane, namespace: str) -> None:
    """Has the cluster give the packages to every pod of the namespace, for manifests that are to run as they are."""
    container = (
        'Object.spec.containers{name: c.name, env: [Object.spec.containers.env{name: "PYTHONPATH", '
        f'value: "{ENVIRONMENT}"' + "}], volumeMounts: [Object.spec.containers.volumeMounts{"
        f'name: "environment", mountPath: "{ENVIRONMENT}", readOnly: true' + "}]}"
    )
    volume = (
        'Object.spec.volumes{name: "environment", persistentVolumeClaim: '
        'Object.spec.volumes.persistentVolumeClaim{claimName: "environment", readOnly: true}}'
    )
    spec = f"Object.spec{{containers: object.spec.containers.map(c, {container}), volumes: [{volume}]}}"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    apply = {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": f"Object{{spec: {spec}}}"}}
    policy = {
        "matchConstraints": {"resourceRules": [rule], "namespaceSelector": here},
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [apply],
    }
    kinds = "/apis/admissionregistration.k8s.io/v1"
    plane.create(f"{kinds}/mutatingadmissionpolicies", {"metadata": {"name": "environment"}, "spec": policy})
    binding = {"metadata": {"name": "environment"}, "spec": {"policyName": "environment"}}
    plane.create(f"{kinds}/mutatingadmissionpolicybindings", binding)


def on_the_node(job: Object, *, read: Mapping[str, str] = {}) -> dict[str, Any]:
    """The job with the image that the node has and its packages; `read` are more claims by mount path, read only."""
    claims = {ENVIRONMENT: "environment", **read}
    volumes = [
        {"name": name, "persistentVolumeClaim": {"claimName": name, "readOnly": True}} for name in claims.values()
    ]
    mounts = [{"name": name, "mountPath": path, "readOnly": True} for path, name in claims.items()]
    spec = job["spec"]
    more = {
        "image": TRAINER_IMAGE,
        "env": [*spec.get("env", ()), {"name": "PYTHONPATH", "value": ENVIRONMENT}],
        "volumes": [*spec.get("volumes", ()), *volumes],
        "volumeMounts": [*spec.get("volumeMounts", ()), *mounts],
    }
    return {**job, "spec": {**spec, **more}}


def apart(job: str) -> dict[str, Any]:
    """A pod template: rather on another node than the job's other pods, and given up as soon as its node is."""
    tolerations = [
        {"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0}
        for what in ("unreachable", "not-ready")
    ]
    selector = {"matchLabels": {"megatrontrain.dev/job-name": job}}
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": selector}
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    affinity = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    return {"spec": {"terminationGracePeriodSeconds": 5, "tolerations": tolerations, "affinity": affinity}}
