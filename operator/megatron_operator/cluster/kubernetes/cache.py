"""The cluster's state of the jobs' children: one informer per resource, combined into the observed state of a job.

Lists and watches; changes nothing and decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_operator.api import names
from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.discovery import wait_until_served
from megatron_operator.cluster.kubernetes.informer import Informer, Key, Listeners, Scope
from megatron_operator.cluster.kubernetes.kueue import KueueCache
from megatron_operator.cluster.kubernetes.pod_events import PodEvents
from megatron_operator.cluster.kubernetes.resource import (
    CONFIG_MAP,
    NODE,
    POD,
    POD_GROUPS,
    SERVICE,
    WORKLOAD,
    Resource,
)
from megatron_operator.cluster.pod_ends import PodEnds, Successes
from megatron_operator.core import attempts
from megatron_operator.core.decide import failure
from megatron_operator.core.job import Job
from megatron_operator.core.kubelet_reasons import TAINTED
from megatron_operator.core.observe import Gang, Pod, Seen, is_owned, read_gang, read_pod, split
from megatron_operator.core.observe_kueue import KueueSeen, read_workload
from megatron_trainjob.progress import Progress

Object = Mapping[str, Any]
NODE_AGE_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much of the cluster to cache. namespaces: () for all. groups: gang schedulers to support.

    kueue: whether jobs are queued by Workloads.
    """

    namespaces: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    nodes: bool = True
    kueue: bool = False
    silence_s: float = 90.0


class Cache:
    """The children of every job, as values."""

    def __init__(self, client: Client, extent: Extent, listeners: Listeners) -> None:
        self._client = client
        self._extent = extent
        self._listeners = listeners
        self._successes = Successes()
        self._pods: Informer[Pod] = self._informer(POD, read_pod, removed=self._successes.note)
        self._services: Informer[Mapping[str, str]] = self._informer(SERVICE, _selector)
        self._config_maps: Informer[None] = self._informer(CONFIG_MAP, _nothing, metadata_only=True)
        self._groups: dict[str, Informer[Gang]] = {}
        self._kueue = KueueCache(client, self._informer(WORKLOAD, read_workload)) if extent.kueue else None
        self._pod_events = PodEvents(client, listeners.guard)
        self._pod_ends = PodEnds()
        self._claims: dict[Key, tuple[str, int]] = {}
        self._nodes: dict[str, tuple[float, bool]] = {}

    async def run(self, on_served: Callable[[], None]) -> None:
        """Runs forever. on_served is called when the API of a gang scheduler becomes available."""
        async with asyncio.TaskGroup() as group:
            for informer in (self._pods, self._services, self._config_maps):
                group.create_task(informer.run())
            for scheduler in self._extent.groups:
                group.create_task(self._run_groups(scheduler, on_served))
            if self._kueue:
                group.create_task(self._kueue.run(on_served))

    async def synced(self) -> None:
        """Returns once pods, services, config maps and Workloads have been listed."""
        await asyncio.gather(self._pods.synced(), self._services.synced(), self._config_maps.synced())
        if self._kueue:  # without them a running job would look like one that was never admitted
            await self._kueue.settled()

    @property
    def is_synced(self) -> bool:
        """Whether pods, services and config maps have been listed."""
        return self._pods.is_synced and self._services.is_synced and self._config_maps.is_synced

    @property
    def silence_s(self) -> float:
        """Seconds since the quietest watch last received something."""
        informers: tuple[Informer[Any], ...] = (
            self._pods,
            self._services,
            self._config_maps,
            *self._groups.values(),
        )
        quietest = max(informer.silence_s for informer in informers)
        return max(quietest, self._kueue.silence_s) if self._kueue else quietest

    async def see(
        self,
        job: Object,
        *,
        parsed: Job | None,
        progress: Progress | None,
        problem: tuple[str, str] | None,
        now: float,
    ) -> Seen:
        """The observed state of this job's children. parsed: the job as a value, None for an invalid manifest."""
        metadata = job["metadata"]
        key, uid = (metadata["namespace"], metadata["name"]), metadata["uid"]
        pods, spares = split(await self._see_pods(job, parsed, now))
        selectors = self._services.of(key, uid)
        gang, stale_groups = self._see_groups(key, uid, parsed.scheduling.gang if parsed else "None", job)
        return Seen(
            status=job.get("status") or {},
            pods=pods,
            spares=spares,
            service_selector=selectors.get(names.service_name(metadata["name"])),
            config_maps=frozenset(self._config_maps.of(key, uid)),
            claims=self._see_claims(job),
            gang=gang,
            stale_groups=stale_groups,
            predecessors=self._see_predecessors(key, uid),
            progress=progress,
            lost_nodes=await self._lost_nodes(pods, now),
            problem=problem,
            kueue=await self._see_kueue(parsed),
        )

    def take(self, resource: Resource, raw: Object) -> None:
        """Stores the server's response to our own write, before the watch delivers it."""
        if resource is WORKLOAD and self._kueue:
            self._kueue.take(raw)
            return
        informers: dict[Resource, Informer[Any]] = {
            POD: self._pods,
            SERVICE: self._services,
            CONFIG_MAP: self._config_maps,
            **{POD_GROUPS[scheduler]: informer for scheduler, informer in self._groups.items()},
        }
        if resource in informers:
            informers[resource].put(raw)

    def take_claim(self, job: Object) -> None:
        """Notes that the claim of this attempt of the job exists. No watch delivers claims, so each attempt asks."""
        metadata = job["metadata"]
        self._claims[metadata["namespace"], metadata["name"]] = (metadata["uid"], _attempt(job))

    def forget(self, key: Key) -> None:
        """Forgets what is known of a deleted job and comes from no watch."""
        self._claims.pop(key, None)

    def _see_claims(self, job: Object) -> frozenset[str]:
        metadata = job["metadata"]
        known = self._claims.get((metadata["namespace"], metadata["name"]))
        return frozenset({names.claim_name(metadata["name"])} if known == (metadata["uid"], _attempt(job)) else ())

    def _see_predecessors(self, key: Key, uid: str) -> tuple[Pod, ...]:
        gangs, _ = split(self._pods.of_others(key, uid).values())
        return tuple(sorted(gangs, key=_by_rank))

    async def _see_pods(self, job: Object, parsed: Job | None, now: float) -> tuple[Pod, ...]:
        metadata = job["metadata"]
        key, uid = (metadata["namespace"], metadata["name"]), metadata["uid"]
        there = self._pods.of(key, uid)
        there |= {pod.name: pod for pod in await self._strays(job, parsed, there)}
        gone = self._successes.of(key, uid, _attempt(job), but_not=there.keys())
        pods = self._pod_ends.corrected(tuple(sorted((*there.values(), *gone), key=_by_rank)), now)
        waiting = (job.get("status") or {}).get("waiting") or {}
        return await self._pod_events.explain(key[0], pods, str(waiting.get("pod", "")))

    async def _strays(self, job: Object, parsed: Job | None, there: Mapping[str, Pod]) -> list[Pod]:
        """Pods of a once complete gang that no watch delivers: most are deleted, others have lost their label.

        Pod names are derived from job and attempt, so the missing pods can be fetched by name. Raises ApiError.
        """
        known = Seen(status=job.get("status") or {}, pods=split(there.values())[0])
        if parsed is None or not failure.was_complete(parsed, known):
            return []
        metadata, missing = job["metadata"], failure.missing(parsed, known)
        found = await asyncio.gather(*(self._client.get(POD, metadata["namespace"], name) for name in missing))
        owned = (raw for raw in found if raw is not None and is_owned(raw, metadata["uid"]))
        return self._listeners.guard.read_all("pods", read_pod, owned)

    async def _see_kueue(self, parsed: Job | None) -> KueueSeen:
        if parsed is None or not parsed.has_workload or self._kueue is None:
            return KueueSeen()
        return await self._kueue.see(parsed)

    def _informer[Record](
        self,
        resource: Resource,
        read: Callable[[Object], Record],
        *,
        metadata_only: bool = False,
        removed: Callable[[Key, str, Record], None] = lambda key, owner_uid, record: None,
    ) -> Informer[Record]:
        scope = Scope(
            resource=resource,
            namespaces=self._extent.namespaces or (None,),
            metadata_only=metadata_only,
            silence_s=self._extent.silence_s,
        )
        return Informer(self._client, scope, read, self._listeners, removed)

    def _see_groups(self, key: Key, uid: str, gang: str, job: Object) -> tuple[Gang | None, tuple[str, ...]]:
        """The PodGroup of the current attempt (with whether its API is served), and the names of the others."""
        if gang == "None":
            return None, ()
        if gang not in self._groups:
            return Gang(served=False), ()
        attempt = _attempt(job)
        groups = self._groups[gang].of(key, uid)
        current = groups.pop(names.group_name(key[1], attempt), None)
        return current, tuple(sorted(name for name, group in groups.items() if not group.deleting))

    async def _run_groups(self, scheduler: str, on_served: Callable[[], None]) -> None:
        """Waits until the scheduler's API is served, then caches its groups."""
        resource = POD_GROUPS[scheduler]
        await wait_until_served(self._client, resource)
        informer = self._informer(resource, lambda raw: read_gang(raw, served=True) or Gang())
        async with asyncio.TaskGroup() as group:
            group.create_task(informer.run())
            await informer.synced()
            self._groups[scheduler] = informer
            on_served()

    async def _lost_nodes(self, pods: tuple[Pod, ...], now: float) -> frozenset[str]:
        """Nodes that are deleted or not ready, among those whose pods should have ended or are taken for a taint."""
        if not self._extent.nodes:
            return frozenset()
        asked = {pod.node for pod in pods if pod.node and (_is_stuck(pod, now) or pod.disruption == TAINTED)}
        return frozenset([node for node in sorted(asked) if await self._is_lost(node)])

    async def _is_lost(self, node: str) -> bool:
        """Whether the node is deleted or not ready; cached for NODE_AGE_S."""
        loop_time = asyncio.get_running_loop().time()
        asked_at, is_lost = self._nodes.get(node, (float("-inf"), False))
        if loop_time - asked_at > NODE_AGE_S:
            raw = await self._client.get(NODE, None, node)
            is_lost = raw is None or not _is_ready(raw)
            self._nodes[node] = (loop_time, is_lost)
        return is_lost


def _is_stuck(pod: Pod, now: float) -> bool:
    return pod.deleting and (pod.grace_ends or now) < now


def _selector(raw: Object) -> Mapping[str, str]:
    return raw["spec"].get("selector") or {}


def _nothing(raw: Object) -> None:
    return None


def _attempt(job: Object) -> int:
    return attempts.of_pods(job.get("status") or {})


def _by_rank(pod: Pod) -> tuple[int, bool, int]:
    return (pod.attempt, pod.role != names.MASTER, pod.index)


def _is_ready(node: Object) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
