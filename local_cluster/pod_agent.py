"""A node without containers: runs the pods of a namespace as processes of this machine and reports them to the server.

The operator's own local pods do the work (commands, mounts, termination messages); what is added is a kubelet's part
of the API: binding, status, grace periods, the final deletion. No isolation: addresses and paths are this machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local_cluster.control_plane import ControlPlane, Refused, free_port
from megatron_operator.api import names
from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig
from megatron_operator.cluster.kubernetes.resource import NODE as NODE_KIND
from megatron_operator.cluster.local import paths as local_paths
from megatron_operator.cluster.local.paths import Folders
from megatron_operator.cluster.local.pod import LocalPod, Step
from megatron_operator.timestamp import to_text

Object = Mapping[str, Any]
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
LOOK_S = 0.2
NODE = "agent"


@dataclass(kw_only=True)
class PodAgent:
    """Runs the pods of one namespace. Claims are folders below `folder`/volumes, logs lie in `folder`/logs."""

    plane: ControlPlane
    namespace: str
    folder: Path
    pods: dict[str, LocalPod] = field(default_factory=dict)
    _reported: dict[str, object] = field(default_factory=dict)
    _ports: dict[tuple[str, str], int] = field(default_factory=dict)

    def run(self, stop: threading.Event) -> None:
        """Looks after the pods until asked to stop; then every process ends."""
        while not stop.wait(LOOK_S):
            for raw in self.plane.get(f"/api/v1/namespaces/{self.namespace}/pods")["items"]:
                with contextlib.suppress(Refused):  # someone else was faster; the next round shows the result
                    self._look_after(raw)
        for pod in self.pods.values():
            pod.delete(time.time(), grace_s=0)
            pod.poll(time.time())

    def claim(self, name: str) -> Path:
        """The folder of a claim."""
        return self.folder / "volumes" / name

    def log(self, pod: str) -> str:
        """What a pod has printed."""
        return (self.folder / "logs" / f"{pod}.log").read_text()

    def _look_after(self, raw: Object) -> None:
        uid, now = raw["metadata"]["uid"], time.time()
        if uid not in self.pods:
            if raw["metadata"].get("deletionTimestamp"):
                self._delete(raw)
                return
            self._bind(raw)
            self.pods[uid] = self._start(raw, now)
        pod = self.pods[uid]
        if raw["metadata"].get("deletionTimestamp") and pod.grace_ends is None:
            pod.delete(now, grace_s=float(raw["metadata"]["deletionGracePeriodSeconds"]))
        pod.poll(now)
        self._report(raw, pod)
        if pod.is_finished and raw["metadata"].get("deletionTimestamp"):
            self._delete(raw)

    def _path(self, raw: Object, subresource: str = "") -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{raw['metadata']['name']}{subresource}"

    def _bind(self, raw: Object) -> None:
        target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
        body = {"metadata": {"name": raw["metadata"]["name"]}, "target": target}
        self.plane.create(self._path(raw, "/binding"), body)

    def _delete(self, raw: Object) -> None:
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": raw["metadata"]["uid"]}}
        self.plane.delete(self._path(raw), options)

    def _report(self, raw: Object, pod: LocalPod) -> None:
        """Sends the pod's status when it has changed; conditions of others (an eviction's) stay."""
        status = pod.seen()["status"]
        kind = "containerStatuses" if "containerStatuses" in status else "initContainerStatuses"
        ready = status["phase"] == "Running"
        whole = [{**each, "image": "local", "imageID": "", "ready": ready, "restartCount": 0} for each in status[kind]]
        body = {"status": {**status, kind: whole, "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}}
        if self._reported.get(raw["metadata"]["uid"]) != body:
            self.plane.request("PATCH", self._path(raw, "/status"), body, content_type=STRATEGIC_PATCH)
            self._reported[raw["metadata"]["uid"]] = body

    def _start(self, raw: Object, now: float) -> LocalPod:
        name, spec = raw["metadata"]["name"], raw["spec"]
        folder = self.folder / "pods" / name
        (folder / "config").mkdir(parents=True, exist_ok=True)
        folders = Folders(volumes=self.folder / "volumes", scratch=folder / "volumes")
        containers = [*spec.get("initContainers", ()), *spec["containers"]]
        steps = [self._step(raw, container, folders) for container in containers]
        log = self.folder / "logs" / f"{name}.log"
        pod = LocalPod(raw=raw, folder=folder, log=log, steps=steps, started_at=now)
        pod.start(now)
        return pod

    def _step(self, raw: Object, container: Object, folders: Folders) -> Step:
        config = self._config_maps(raw, folders.scratch.parent / "config")
        paths = local_paths.mapping(raw["spec"], container, folders, config=config)
        for folder in paths.values():
            Path(folder).mkdir(parents=True, exist_ok=True)
        self._write_config(config, paths)
        given = {each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}
        return Step(
            container=container["name"],
            command=[local_paths.rewritten(word, paths) for word in container["command"]],
            variables={
                **{name: local_paths.rewritten(value, paths) for name, value in given.items()},
                **self._node_variables(raw, folders.scratch.parent),
            },
        )

    def _config_maps(self, raw: Object, root: Path) -> dict[str, Path]:
        mounted = {local_paths.config_map_of(volume) for volume in raw["spec"].get("volumes", ())} - {""}
        return {name: root / name for name in mounted}

    def _write_config(self, config: Mapping[str, Path], paths: Mapping[str, str]) -> None:
        for name, folder in config.items():
            folder.mkdir(parents=True, exist_ok=True)
            data = self.plane.get(f"/api/v1/namespaces/{self.namespace}/configmaps/{name}")["data"]
            for file, text in data.items():
                (folder / file).write_text(local_paths.rewritten_yaml(text, paths))

    def _node_variables(self, raw: Object, folder: Path) -> dict[str, str]:
        """What differs where pods have no network of their own: the master's address, a port for each gang."""
        labels = raw["metadata"]["labels"]
        gang = (labels[names.LABEL_JOB_NAME], labels[names.LABEL_RESTART_ATTEMPT])
        port = str(self._ports.setdefault(gang, free_port()))
        return {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": port,
            "MTJ_TERMINATION_LOG": str(folder / "termination-log"),
            "MTJ_DEVICE": "cpu",
        }


@contextlib.contextmanager
def running(agent: PodAgent) -> Iterator[PodAgent]:
    """The agent at work in a thread of its own, as a node of the cluster, for as long as the block lasts."""
    asyncio.run(_join(agent.plane))
    stop = threading.Event()
    thread = threading.Thread(target=agent.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield agent
    finally:
        stop.set()
        thread.join(timeout=60)


async def _join(plane: ControlPlane) -> None:
    """Makes the node: the garbage collector of pods ends those of a node that is not there."""
    async with Client(from_kubeconfig(plane.kubeconfig)) as client:
        await make_node(client, NODE)


async def make_node(client: Client, name: str, *, capacity: Object | None = None) -> None:
    """Makes a Ready node with this capacity."""
    resources = {"cpu": "64", "memory": "512Gi", "pods": "10000", **(capacity or {})}
    with contextlib.suppress(ApiError):
        await client.create(NODE_KIND, None, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    untainted = {"spec": {"taints": None}}  # of not-ready, which no controller takes off here
    await client.patch(NODE_KIND, None, name, untainted)
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": to_text(time.time())}
    status = {"capacity": resources, "allocatable": resources, "conditions": [ready]}
    await client.patch(NODE_KIND, None, name, {"status": status}, subresource="status")
