"""What a test does with jobs on the real API server: submit, look, wait, hurt their pods. As the administrator."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from local_cluster import control_plane
from local_cluster.control_plane import ControlPlane, Refused
from local_cluster.wait import PATIENCE_S, wait_until
from tests.support.operator import fake_kubelet

Object = Mapping[str, Any]
ROOT = Path(__file__).parents[3]
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
POLICIES = {
    "ValidatingAdmissionPolicy": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
}
API = "/apis/megatrontrain.dev/v1alpha1"
ARGS = {"model": "/models/tiny", "dataset": ["/data/train.jsonl"], "train_iters": 10}


def manifest(name: str = "job", **spec: object) -> dict[str, Any]:
    """A valid MegatronTrainJob of two nodes, with these fields of spec in place of the default ones."""
    defaults = {"task": "sft", "image": "trainer:test", "numNodes": 2, "args": ARGS}
    return {
        "apiVersion": "megatrontrain.dev/v1alpha1",
        "kind": "MegatronTrainJob",
        "metadata": {"name": name},
        "spec": {**defaults, **spec},
    }


@dataclass(frozen=True, kw_only=True)
class JobClient:
    """Jobs and pods of one namespace."""

    plane: ControlPlane
    namespace: str

    def path(self, plural: str, name: str = "") -> str:
        """URL path of a core resource, or of the jobs."""
        root = API if plural == "megatrontrainjobs" else "/api/v1"
        return f"{root}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def submit(self, body: Object) -> Object:
        """The job as the server made it."""
        created: Object = self.plane.create(self.path("megatrontrainjobs"), body)
        return created

    def patch(self, name: str, **spec: object) -> Object:
        """The job after a change of these fields of spec."""
        patched: Object = self.plane.merge(self.path("megatrontrainjobs", name), {"spec": spec})
        return patched

    def delete(self, name: str = "job") -> None:
        """Deletes the job as kubectl does."""
        self.plane.delete(self.path("megatrontrainjobs", name), {"propagationPolicy": "Background"})

    def job(self, name: str = "job") -> Object | None:
        """The job, or None."""
        found: Object | None = self.plane.get(self.path("megatrontrainjobs", name))
        return found

    def status(self, name: str = "job") -> Object:
        """Its status, {} before it has one."""
        return (self.job(name) or {}).get("status") or {}

    def condition(self, type_: str, name: str = "job") -> Object:
        """One condition of its status, {} when it has none of this type."""
        return next((c for c in self.status(name).get("conditions", ()) if c["type"] == type_), {})

    def await_phase(self, phase: str, name: str = "job", patience_s: float = PATIENCE_S) -> Object:
        """The status, once its phase is this."""
        return wait_until(lambda: self.status(name), lambda s: s.get("phase") == phase, f"phase {phase}", patience_s)

    def pods(self, name: str = "job") -> dict[str, Object]:
        """The job's pods by name."""
        query = f"?labelSelector=megatrontrain.dev/job-name={name}"
        return {pod["metadata"]["name"]: pod for pod in self.plane.get(self.path("pods") + query)["items"]}

    def await_pods(self, *names: str, job: str = "job") -> dict[str, Object]:
        """The job's pods, once they are these and no others and none is being deleted."""

        def settled(pods: dict[str, Object]) -> bool:
            return set(pods) == set(names) and not any("deletionTimestamp" in p["metadata"] for p in pods.values())

        return wait_until(lambda: self.pods(job), settled, f"pods {sorted(names)}")

    def names_of(self, plural: str, name: str = "job") -> set[str]:
        """Names of the job's objects of one core resource."""
        query = f"?labelSelector=megatrontrain.dev/job-name={name}"
        return {each["metadata"]["name"] for each in self.plane.get(self.path(plural) + query)["items"]}

    def events(self, name: str = "job") -> dict[str, Object]:
        """The events about the job by reason; of equal reasons the latest."""
        items = self.plane.get(self.path("events"))["items"]
        return {event["reason"]: event for event in items if event["involvedObject"]["name"] == name}

    def await_events(self, *reasons: str) -> dict[str, Object]:
        """Waits for events of all these reasons: the operator writes them after the change they tell of."""
        return wait_until(self.events, set(reasons).issubset, f"events {sorted(reasons)}")

    def end_pod(self, pod: str, exit_code: int, *, message: str = "", reason: str = "") -> None:
        """Ends the pod's container, as its kubelet would report it."""
        raw = self.plane.get(self.path("pods", pod))
        status = fake_kubelet.ended(raw, exit_code, message=message, reason=reason)
        self.plane.merge(self.path("pods", pod) + "/status", {"status": status})

    def end_container(self, pod: str, exit_code: int, *, reason: str = "Error") -> None:
        """Ends the pod's container, which its kubelet is about to start again."""
        self._set_status(pod, lambda raw: fake_kubelet.restarting(raw, exit_code, reason=reason))

    def restart_container(self, pod: str) -> None:
        """Its kubelet has started such a container again."""
        self._set_status(pod, fake_kubelet.running_again)

    def _set_status(self, pod: str, status: Callable[[Object], Object]) -> None:
        raw = self.plane.get(self.path("pods", pod))
        self.plane.merge(self.path("pods", pod) + "/status", {"status": status(raw)})


def serving(folder: Path) -> Iterator[ControlPlane]:
    """A control plane with the CRD installed, for as long as somebody uses it."""
    running = control_plane.start(folder)
    try:
        install_crd(running)
        yield running
    finally:
        running.stop()


def install_crd(plane: ControlPlane) -> None:
    """Installs the CRD and its admission policy, as crds/ has them, and waits until both are in force."""
    plane.create(CRDS, yaml.safe_load((ROOT / "crds" / "megatrontrainjob.yaml").read_text()))
    wait_until(lambda: plane.get(f"{API}/megatrontrainjobs"), bool, "the CRD to be served")
    for each in yaml.safe_load_all((ROOT / "crds" / "admission-policy.yaml").read_text()):
        plane.create(POLICIES[each["kind"]], each)
    wait_until(lambda: is_policed(plane), bool, "the admission policy to be in force")


def is_policed(plane: ControlPlane) -> bool:
    """Whether the API server refuses an unknown argument; nothing is stored."""
    try:
        plane.create(f"{API}/namespaces/default/megatrontrainjobs", manifest(args={**ARGS, "x": 1}), dryRun="All")
    except Refused as refused:
        return refused.status == 422
    return False


def new_namespace(plane: ControlPlane, name: str) -> str:
    """A namespace of this name and a number, with its default service account (else pods are refused at first)."""
    namespace = f"{re.sub(r'[^a-z0-9]+', '-', name.lower())[:50].strip('-')}-{control_plane.free_port()}"
    plane.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    with contextlib.suppress(Refused):  # the controller-manager may have been faster
        plane.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "default"}})
    return namespace
