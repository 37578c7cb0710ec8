"""The observed state as values: raw pods, objects and progress of one job -> Seen. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from megatron_operator.api import names
from megatron_operator.core import attempts, pod_end
from megatron_operator.core.observe_kueue import KueueSeen
from megatron_operator.core.pod_end import (
    MAX_MESSAGE_CHARACTERS,
    MAX_REASON_CHARACTERS,
    ContainerEnd,
    ContainerKind,
    PodPhase,
)
from megatron_operator.guard import Guard, Unreadable, shortened
from megatron_operator.timestamp import to_seconds
from megatron_trainjob.progress import Progress

Object = Mapping[str, Any]
MAX_DIGITS = 10
NO_COUNT = Guard()


@dataclass(frozen=True, kw_only=True)
class Pod(ContainerEnd):
    """One pod, and how `container`, the one that decides it, has ended.

    phase: the trainer's once it runs or has ended, whatever other containers do. num_nodes: of the gang it is part of.
    kept_from: nodes that its affinity excludes because the job failed there.
    is_outlived: its trainer has ended, other containers hold its resources. is_kept: its launcher will start new ranks.
    is_down: the kubelet is about to start the trainer's container again, as it has num_container_restarts times.
    last_end: how the former container ended. has_attempt_file: whether its launcher, once started again, has to ask.
    is_recorded: whether a termination record of the trainer's launcher confirms the exit code.
    is_mislabeled: whether a label by which watches and services select it was removed or changed.
    gate: the name of a scheduling gate, preferably Kueue's. in_queue: whether Kueue manages the pod, gated or ungated.
    disruption: reason of a DisruptionTarget condition. waiting: why a container has not started. initializing: the
    running init container. warning: reason of the newest event about a scheduled pod that has not started, if that is
    a warning. Times are seconds since the epoch.
    """

    name: str
    uid: str = ""
    attempt: int = 0
    role: str = names.MASTER
    index: int = 0
    num_nodes: int | None = None
    kept_from: frozenset[str] = frozenset()
    phase: PodPhase = "Pending"
    is_outlived: bool = False
    is_kept: bool = False
    is_down: bool = False
    num_container_restarts: int = 0
    has_attempt_file: bool = False
    last_end: ContainerEnd | None = None
    ready: bool = False
    deleting: bool = False
    is_mislabeled: bool = False
    grace_ends: float | None = None
    created_at: float = 0.0
    gated: bool = False
    gate: str = ""
    in_queue: bool = False
    scheduled_at: float | None = None
    unschedulable: str | None = None
    waiting: str | None = None
    waiting_message: str = ""
    initializing: str = ""
    warning: str = ""
    warning_message: str = ""
    node: str = ""
    container: str = names.CONTAINER
    container_kind: ContainerKind = "Trainer"
    disruption: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether its trainer has ended, or can never start."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True, kw_only=True)
class Gang:
    """The PodGroup of the current attempt. `served` is False when the cluster does not know such groups.

    phase: "" until its scheduler has seen it. message: the scheduler's newest words about it.
    """

    name: str = ""
    phase: str = ""
    message: str = ""
    served: bool = True
    deleting: bool = False


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The observed state of one job's children. `status` is the stored status of the job, {} at first.

    spares: pods without ranks, of any attempt; `pods` has none of them. service_selector: None if there is no service.
    problem: (reason, message) of the last rejected change, shown as condition Stalled until a change succeeds.
    predecessors: pods of a deleted job of the same name that may still run and write. lost_nodes: names of nodes that
    are deleted or not ready. stale_groups: PodGroups of earlier attempts, which would hold quota for nothing.
    launchers: last report by pod name; listens_since: when these began to arrive.
    """

    status: Object = field(default_factory=dict)
    pods: tuple[Pod, ...] = ()
    spares: tuple[Pod, ...] = ()
    service_selector: Mapping[str, str] | None = None
    config_maps: frozenset[str] = frozenset()
    claims: frozenset[str] = frozenset()
    gang: Gang | None = None
    stale_groups: tuple[str, ...] = ()
    predecessors: tuple[Pod, ...] = ()
    progress: Progress | None = None
    lost_nodes: frozenset[str] = frozenset()
    problem: tuple[str, str] | None = None
    kueue: KueueSeen = KueueSeen()
    launchers: Mapping[str, attempts.HeardReport] = field(default_factory=dict)
    listens_since: float = 0.0

    @cached_property
    def attempt(self) -> int:
        """The attempt of the ranks in the stored status."""
        return attempts.of_ranks(self.status)

    @cached_property
    def pod_attempt(self) -> int:
        """The attempt for which the present pods were created."""
        return attempts.of_pods(self.status)

    @cached_property
    def current(self) -> tuple[Pod, ...]:
        """Pods of this attempt, in node-rank order."""
        return tuple(pod for pod in self.pods if pod.attempt == self.pod_attempt)

    @cached_property
    def stale(self) -> tuple[Pod, ...]:
        """Pods of earlier attempts."""
        return tuple(pod for pod in self.pods if pod.attempt != self.pod_attempt)

    @property
    def beat(self) -> Progress | None:
        """The progress record if this attempt wrote it."""
        return self.progress if self.progress and self.progress.attempt == self.attempt else None

    def condition(self, type_: str) -> Object | None:
        """The stored condition of this type."""
        return next((c for c in self.status.get("conditions", ()) if c["type"] == type_), None)

    def is_true(self, type_: str) -> bool:
        """Whether the stored condition of this type is True."""
        return (self.condition(type_) or {}).get("status") == "True"


def observe(
    *,
    job_uid: str,
    status: Object | None,
    pods: Iterable[Object],
    services: Iterable[Object] = (),
    config_maps: Iterable[str] = (),
    claims: Iterable[str] = (),
    gang: Object | None = None,
    gang_served: bool = True,
    stale_groups: Iterable[str] = (),
    progress: Progress | None = None,
    lost_nodes: Iterable[str] = (),
    problem: tuple[str, str] | None = None,
    guard: Guard = NO_COUNT,
) -> Seen:
    """The observed state of one job. Pods and services are raw objects; those of another owner are ignored."""
    owned = [pod for pod in pods if is_owned(pod, job_uid)]
    gang_pods, spares = split(sorted(guard.read_all("pods", read_pod, owned), key=_by_rank))
    selectors = [raw["spec"].get("selector") or {} for raw in services if is_owned(raw, job_uid)]
    return Seen(
        status=status or {},
        pods=gang_pods,
        spares=spares,
        service_selector=selectors[0] if selectors else None,
        config_maps=frozenset(config_maps),
        claims=frozenset(claims),
        gang=read_gang(gang, served=gang_served),
        stale_groups=tuple(stale_groups),
        progress=progress,
        lost_nodes=frozenset(lost_nodes),
        problem=problem,
    )


def split(pods: Iterable[Pod]) -> tuple[tuple[Pod, ...], tuple[Pod, ...]]:
    """The pods of gangs, and the spares."""
    pods = tuple(pods)
    return tuple(pod for pod in pods if pod.role != names.SPARE), tuple(pod for pod in pods if pod.role == names.SPARE)


def is_owned(raw: Object, job_uid: str) -> bool:
    """Whether the object's controlling owner is the job with this uid."""
    owners = raw["metadata"].get("ownerReferences") or ()
    return any(owner.get("uid") == job_uid and owner.get("controller") for owner in owners)


def read_gang(raw: Object | None, *, served: bool) -> Gang | None:
    """The PodGroup as a value; an API that is not served is distinguished from a missing group."""
    if raw is None:
        return None if served else Gang(served=False)
    metadata, status = raw["metadata"], raw.get("status") or {}
    newest: Object = max(status.get("conditions") or ({},), key=lambda each: str(each.get("lastTransitionTime")))
    return Gang(
        name=metadata["name"],
        phase=shortened(status.get("phase"), MAX_REASON_CHARACTERS),
        message=shortened(newest.get("message"), MAX_MESSAGE_CHARACTERS),
        deleting="deletionTimestamp" in metadata,
    )


def job_name(raw: Object) -> str | None:
    """The job that the object belongs to: its controlling owner, else the job in its label; None without either.

    Labels can be edited by many clients.
    """
    metadata = raw["metadata"]
    owners = [owner for owner in metadata.get("ownerReferences") or () if is_job(owner)]
    label: str | None = (metadata.get("labels") or {}).get(names.LABEL_JOB_NAME)
    return str(owners[0]["name"]) if owners else label


def is_job(owner: Object) -> bool:
    """Whether an owner reference is to a job that controls the object."""
    group = str(owner.get("apiVersion", "")).partition("/")[0]
    return bool(owner.get("controller")) and owner.get("kind") == names.KIND and group == names.GROUP


def read_pod(raw: Object) -> Pod:
    """One raw pod as a value. Raises Unreadable for a name that no pod of its job can have.

    Attempt and rank come from the name, which is immutable, rather than from labels, which many clients may edit.
    """
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    labels, of_job = metadata.get("labels") or {}, job_name(raw) or ""
    place = names.place_of(metadata["name"], of_job)
    if place is None:
        raise Unreadable("its name is not that of a pod of the job")
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    waiting, waiting_message = _waiting(spec, status)
    return Pod(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        attempt=place.attempt,
        role=place.role,
        index=place.index,
        num_nodes=_num_nodes(metadata),
        kept_from=_kept_from(metadata),
        ready=_is_true(conditions, "Ready"),
        deleting=metadata.get("deletionTimestamp") is not None,
        is_mislabeled=any(labels.get(key) != value for key, value in names.place_labels(of_job, place).items()),
        grace_ends=to_seconds(metadata.get("deletionTimestamp")),
        created_at=to_seconds(metadata.get("creationTimestamp")) or 0.0,
        gated=bool(spec.get("schedulingGates")),
        gate=_gate(spec),
        in_queue=labels.get(names.KUEUE_MANAGED) == "true",
        scheduled_at=_scheduled_at(conditions),
        unschedulable=_unschedulable(conditions),
        waiting=waiting,
        waiting_message=waiting_message,
        initializing=_initializing(spec, status),
        node=shortened(spec.get("nodeName"), MAX_REASON_CHARACTERS),
        disruption=_disruption(conditions),
        **pod_end.read(spec, status),
    )


def _gate(spec: Object) -> str:
    """The scheduling gate to report: Kueue's before others, which wait behind it."""
    found = [shortened(gate.get("name"), MAX_REASON_CHARACTERS) for gate in spec.get("schedulingGates") or ()]
    return min(found, key=lambda name: not name.startswith(names.KUEUE_PREFIX), default="")


def _num_nodes(metadata: Object) -> int | None:
    text = (metadata.get("annotations") or {}).get(names.ANNOTATION_NUM_NODES)
    return int(text) if isinstance(text, str) and text.isdecimal() and len(text) < MAX_DIGITS else None


def _kept_from(metadata: Object) -> frozenset[str]:
    text = (metadata.get("annotations") or {}).get(names.ANNOTATION_KEPT_FROM)
    return frozenset(filter(None, text.split(","))) if isinstance(text, str) else frozenset()


def _by_rank(pod: Pod) -> tuple[int, bool, int]:
    return (pod.attempt, pod.role != names.MASTER, pod.index)


def _is_true(conditions: Mapping[str, Object], type_: str) -> bool:
    return conditions.get(type_, {}).get("status") == "True"


def _scheduled_at(conditions: Mapping[str, Object]) -> float | None:
    if not _is_true(conditions, "PodScheduled"):
        return None
    return to_seconds(conditions["PodScheduled"].get("lastTransitionTime"))


def _unschedulable(conditions: Mapping[str, Object]) -> str | None:
    """The words of whatever scheduler: no room, or an error of its own (a volume that is not bound in time)."""
    condition = conditions.get("PodScheduled", {})
    if condition.get("status") != "False" or condition.get("reason") in (None, "", "SchedulingGated"):
        return None
    return shortened(condition.get("message"), MAX_MESSAGE_CHARACTERS) or shortened(
        condition["reason"], MAX_REASON_CHARACTERS
    )


def _disruption(conditions: Mapping[str, Object]) -> str | None:
    if not _is_true(conditions, "DisruptionTarget"):
        return None
    return shortened(conditions["DisruptionTarget"].get("reason"), MAX_REASON_CHARACTERS) or "Unknown"


def _containers(status: Object) -> tuple[Object, ...]:
    return (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))


def _waiting(spec: Object, status: Object) -> tuple[str | None, str]:
    """Why a container has not started: the first that reports a reason, or that crash-loops before the trainer."""
    native = pod_end.native_sidecars(spec)
    for container in _containers(status):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            reason = shortened(waiting["reason"], MAX_REASON_CHARACTERS)
            message = shortened(waiting.get("message"), MAX_MESSAGE_CHARACTERS)
            return reason, f"{container['name']}: {message}" if container["name"] != names.CONTAINER else message
        last = (container.get("lastState") or {}).get("terminated")
        if last and container["name"] in native and not container.get("started"):
            return (
                "CrashLoopBackOff",
                f"{container['name']} exited with code {last.get('exitCode')} before it was ready",
            )
    return None, ""


def _initializing(spec: Object, status: Object) -> str:
    """The running init container that the others wait for; "" without one."""
    native = pod_end.native_sidecars(spec)
    for container in status.get("initContainerStatuses") or ():
        is_running = (container.get("state") or {}).get("running") is not None
        if is_running and not (container["name"] in native and container.get("started")):
            return str(container["name"])
    return ""
