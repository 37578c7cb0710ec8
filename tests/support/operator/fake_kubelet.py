"""Simulates the kubelets of a control plane without nodes: binds pods, makes them run, ends them as a test says.

Speaks the same API as a kubelet (binding, pod status, final deletion), so everything else behaves as on nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from local_cluster.pod_agent import make_node
from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig
from megatron_operator.cluster.kubernetes.resource import POD

Object = Mapping[str, Any]
NODE_NAME = "fake-node"
LAG_S = 0.7  # after which a kubelet says that a container runs again
TERMINATED = 128 + 15  # by SIGTERM
RESTART_S = (0.3, 2.0)  # before a container starts again, the first time and later; a kubelet waits longer
RETRY_S = 0.2
logger = logging.getLogger(__name__)


Container = Callable[[Client, Object], Awaitable[int]]
"""What runs in a pod; its result is the exit code. Cancelled when the pod has had its time to stop."""


@dataclass(frozen=True, kw_only=True)
class Life:
    """How and where a pod lives. after_s None: it runs until somebody ends it. stop_s: what it takes after SIGTERM.

    container: runs in it, in place of after_s and exit_code.
    """

    runs: bool = True
    after_s: float | None = None
    exit_code: int = 0
    container: Container | None = None
    message: str = ""
    stop_s: float = 0.0
    node: str = NODE_NAME


@dataclass(kw_only=True)
class FakeKubelet:
    """Watches all pods (or those of one namespace) and lets each live as `life` says of it.

    placing: who puts pods on nodes: this kubelet itself, a scheduler, or no one (pods run without a node: fewer
    writes, for measurements). overlaps: pods that began while one of another attempt of their job ran.
    """

    kubeconfig: Path
    namespace: str | None = None
    life: Callable[[Object], Life] = lambda pod: Life()
    placing: Literal["self", "scheduler", "none"] = "self"
    max_parallel: int = 16
    overlaps: list[str] = field(default_factory=list)
    _containers: dict[str, asyncio.Task[int]] = field(default_factory=dict)
    _seen: dict[str, str] = field(default_factory=dict)
    _alive: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)

    async def run(self) -> None:
        """Runs until cancelled; lists and watches again when a watch breaks."""
        connection = from_kubeconfig(self.kubeconfig)
        async with (
            Client(connection, max_parallel_requests=self.max_parallel) as client,
            asyncio.TaskGroup() as group,
        ):
            while True:
                with contextlib.suppress(ApiError):
                    await self._follow(client, group)
                await asyncio.sleep(RETRY_S)

    async def _follow(self, client: Client, group: asyncio.TaskGroup) -> None:
        page = await client.list_page(POD, self.namespace, {}, metadata_only=False)
        self._forget_all_but({pod["metadata"]["uid"] for pod in page["items"]})
        for pod in page["items"]:
            self._take(client, group, pod)
        position = {"resourceVersion": page["metadata"]["resourceVersion"]}
        async for event in client.watch(POD, self.namespace, position, silence_s=600):
            if event["type"] in ("ADDED", "MODIFIED"):
                self._take(client, group, event["object"])
            elif event["type"] == "DELETED":
                self._forget(event["object"])

    def _take(self, client: Client, group: asyncio.TaskGroup, pod: Object) -> None:
        """Starts what a kubelet does about this pod, once for each of its stages."""
        metadata = pod["metadata"]
        if metadata.get("deletionTimestamp"):
            stage, work = "ending", self._end
        elif pod["spec"].get("schedulingGates") or self._waits_for_scheduler(pod):
            return
        elif pod["status"].get("phase") == "Pending":
            stage, work = "starting", self._start
        else:
            return
        if self._seen.get(metadata["uid"]) != stage:
            self._seen[metadata["uid"]] = stage
            group.create_task(work(client, pod))

    async def _insist(self, stage: str, pod: Object, request: Callable[[], Awaitable[object]]) -> None:
        """Sends the request until the server has carried it out, the pod is gone, or its next stage has begun."""
        while self._is_at(stage, pod):
            try:
                await request()
                return
            except ApiError as error:
                if error.is_missing:
                    return
            await asyncio.sleep(RETRY_S)

    def _is_at(self, stage: str, pod: Object) -> bool:
        return self._seen.get(pod["metadata"]["uid"]) == stage

    def _waits_for_scheduler(self, pod: Object) -> bool:
        return self.placing == "scheduler" and not pod["spec"].get("nodeName")

    async def _start(self, client: Client, pod: Object) -> None:
        life = self.life(pod)
        if self.placing == "self" and not pod["spec"].get("nodeName"):
            await self._insist("starting", pod, lambda: _bind(client, pod, life.node))
        if not life.runs or not self._is_at("starting", pod):
            return
        self._note_start(pod)
        await self._insist("starting", pod, lambda: patch_status(client, pod, running(pod)))
        exit_code = await self._exit_code(client, pod, life)
        restarts = 0
        while exit_code is not None and restarts_after(pod, exit_code) and self._is_at("starting", pod):
            pod = await self._take_down(client, pod, exit_code, RESTART_S[min(restarts, 1)])
            reported = asyncio.ensure_future(self._report_late(client, pod))
            exit_code = await self._exit_code(client, pod, life) if self._is_at("starting", pod) else None
            await reported
            restarts += 1
        if exit_code is not None:
            if self._is_at("starting", pod):
                self._note_end(pod)  # before the report, whose answer a restart of the API server may lose
            status = ended(pod, exit_code, message=life.message)
            await self._insist("starting", pod, lambda: patch_status(client, pod, status))

    async def _take_down(self, client: Client, pod: Object, exit_code: int, pause_s: float) -> Object:
        """Reports that the trainer's container has ended, and pauses; the pod with the status that it has then."""
        down = restarting(pod, exit_code)
        await self._insist("starting", pod, lambda: patch_status(client, pod, down))
        await asyncio.sleep(pause_s)
        return {**pod, "status": running_again({**pod, "status": down})}

    async def _report_late(self, client: Client, pod: Object) -> None:
        """Reports that it runs again a while after it does, as kubelets do."""
        await asyncio.sleep(LAG_S)
        await self._insist("starting", pod, lambda: patch_status(client, pod, pod["status"]))

    async def _exit_code(self, client: Client, pod: Object, life: Life) -> int | None:
        """How the container ends by itself, None when it does not."""
        if life.container is None:
            await asyncio.sleep(life.after_s or 0.0)
            return None if life.after_s is None else life.exit_code
        work = self._containers[pod["metadata"]["uid"]] = asyncio.ensure_future(life.container(client, pod))
        await asyncio.wait([work])
        return None if work.cancelled() else work.result()

    def _note_start(self, pod: Object) -> None:
        """Remembers as an overlap that a pod starts while one of another attempt of its job still runs."""
        job, attempt = _job_and_attempt(pod)
        alive = self._alive.setdefault(job, {})
        others = [uid for uid, other in alive.items() if other != attempt]
        if others:
            self.overlaps.append(f"{pod['metadata']['name']} began beside {len(others)} pods of another attempt")
        alive[pod["metadata"]["uid"]] = attempt

    def _forget(self, pod: Object) -> None:
        self._seen[pod["metadata"]["uid"]] = "gone"
        self._note_end(pod)

    def _forget_all_but(self, uids: set[str]) -> None:
        """A pod that went while no watch was open is known by its absence from the next list alone."""
        self._seen = {uid: stage if uid in uids else "gone" for uid, stage in self._seen.items()}
        self._alive = {
            job: {uid: attempt for uid, attempt in alive.items() if uid in uids} for job, alive in self._alive.items()
        }

    def _note_end(self, pod: Object) -> None:
        job, _ = _job_and_attempt(pod)
        self._alive.get(job, {}).pop(pod["metadata"]["uid"], None)

    async def _end(self, client: Client, pod: Object) -> None:
        metadata = pod["metadata"]
        if stop_s := self.life(pod).stop_s:
            await asyncio.sleep(stop_s)
        if container := self._containers.get(metadata["uid"]):
            container.cancel()
        if _is_held_back(pod):
            await self._insist("ending", pod, lambda: patch_status(client, pod, ended(pod, TERMINATED)))
        namespace, name, uid = (metadata[key] for key in ("namespace", "name", "uid"))
        await self._insist("ending", pod, lambda: client.delete(POD, namespace, name, uid=uid, grace_period_s=0))


def _is_held_back(pod: Object) -> bool:
    """Whether a finalizer keeps a pod of this node after its end, so that somebody sees how it ended."""
    has_ended = pod["status"].get("phase") in ("Succeeded", "Failed")
    return bool(pod["metadata"].get("finalizers") and pod["spec"].get("nodeName")) and not has_ended


def _job_and_attempt(pod: Object) -> tuple[tuple[str, str], str]:
    labels = pod["metadata"].get("labels") or {}
    name = labels.get("megatrontrain.dev/job-name", pod["metadata"]["name"])
    return (pod["metadata"]["namespace"], name), labels.get("megatrontrain.dev/restart-attempt", "")


async def _bind(client: Client, pod: Object, node: str) -> None:
    """Puts the pod on the node; a binding whose answer was lost, and which is refused the next time, is done."""
    metadata = pod["metadata"]
    body = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": metadata["name"], "uid": metadata["uid"]},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    }
    path = POD.path(metadata["namespace"], metadata["name"], "binding")
    try:
        await client.request("create", POD, path, body=body)
    except ApiError as error:
        found = await client.get(POD, metadata["namespace"], metadata["name"]) if error.is_conflict else None
        if not (found and found["spec"].get("nodeName") == node):
            raise


async def patch_status(client: Client, pod: Object, status: Object) -> None:
    """Reports the pod's status as its kubelet; refused (409) for a namesake that came later."""
    metadata = pod["metadata"]
    body = {"metadata": {"uid": metadata["uid"]}, "status": status}
    await client.patch(POD, metadata["namespace"], metadata["name"], body, subresource="status")


def running(pod: Object) -> Object:
    """Status of a pod whose containers all run."""
    now = _now()
    return {
        "phase": "Running",
        "startTime": now,
        "podIP": "10.9.0.1",
        "podIPs": [{"ip": "10.9.0.1"}],
        "conditions": _conditions("True", now),
        "containerStatuses": [_container(each, {"running": {"startedAt": now}}) for each in _containers(pod)],
    }


def ended(pod: Object, exit_code: int, *, message: str = "", reason: str = "") -> Object:
    """Status of a pod whose containers have ended with this exit code and termination message."""
    terminated = _terminated(exit_code, reason or ("Completed" if exit_code == 0 else "Error"), message)
    return {
        "phase": "Failed" if exit_code else "Succeeded",
        "conditions": _conditions("False", _now()),
        "containerStatuses": [_container(each, {"terminated": terminated}) for each in _containers(pod)],
    }


def restarting(pod: Object, exit_code: int, *, reason: str = "Error") -> Object:
    """Status of a pod whose trainer has ended and is about to start again, by the rules of its container."""
    return {
        "phase": "Running",
        "conditions": _conditions("False", _now()),
        "containerStatuses": [
            _container(each, {"terminated": _terminated(exit_code, reason)}, restarts=_restarts(pod))
            for each in _containers(pod)
        ],
    }


def running_again(pod: Object) -> Object:
    """Status of such a pod once its trainer runs again."""
    last = pod["status"]["containerStatuses"][0]["state"]
    status = running(pod)
    again = [{**each, "restartCount": _restarts(pod) + 1, "lastState": last} for each in status["containerStatuses"]]
    return {**status, "containerStatuses": again}


def restarts_after(pod: Object, exit_code: int) -> bool:
    """Whether a rule of the pod's trainer says that it starts again after this code."""
    rules = _containers(pod)[0].get("restartPolicyRules") or ()
    return any(exit_code in rule["exitCodes"]["values"] for rule in rules)


def _restarts(pod: Object) -> int:
    known = pod["status"].get("containerStatuses") or [{}]
    return int(known[0].get("restartCount", 0))


def _terminated(exit_code: int, reason: str, message: str = "") -> Object:
    now = _now()
    return {"exitCode": exit_code, "reason": reason, "startedAt": now, "finishedAt": now, "message": message}


def _containers(pod: Object) -> list[Object]:
    containers: list[Object] = pod["spec"]["containers"]
    return containers


def _container(container: Object, state: Object, restarts: int = 0) -> Object:
    is_up = "running" in state
    return {
        "name": container["name"],
        "image": container.get("image", ""),
        "imageID": "",
        "ready": is_up,
        "started": is_up,
        "restartCount": restarts,
        "state": state,
    }


def _conditions(ready: str, now: str) -> list[Object]:
    values = {"PodScheduled": "True", "Initialized": "True", "Ready": ready, "ContainersReady": ready}
    return [{"type": type_, "status": status, "lastTransitionTime": now} for type_, status in values.items()]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextlib.contextmanager
def playing(kubelet: FakeKubelet, *, with_node: bool = True) -> Iterator[FakeKubelet]:
    """Runs the kubelet in a thread of its own for as long as the block lasts; raises what has ended it before."""
    loop = asyncio.new_event_loop()

    async def play() -> None:
        if with_node:
            async with Client(from_kubeconfig(kubelet.kubeconfig)) as client:
                await make_node(client, NODE_NAME)
        await kubelet.run()

    task = loop.create_task(play())

    def work() -> None:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            loop.run_until_complete(task)
        if left := asyncio.all_tasks(loop):
            for each in left:
                each.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield kubelet
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(timeout=10)
        loop.close()
        if task.done() and not task.cancelled() and (error := task.exception()):
            raise error
