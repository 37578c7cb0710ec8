"""The cluster's Kueue objects for the jobs: their Workloads, and the flavors and priorities that these refer to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.discovery import wait_until_served
from megatron_operator.cluster.kubernetes.informer import Informer
from megatron_operator.cluster.kubernetes.resource import PRIORITY_CLASSES, RESOURCE_FLAVOR, WORKLOAD, Resource
from megatron_operator.core.desired import workload
from megatron_operator.core.job import Job
from megatron_operator.core.observe_kueue import KueueSeen, PodSetPlace, Workload, place

Object = Mapping[str, Any]
CACHED_S = 60.0


class KueueCache:
    """The Workloads of the jobs, once the cluster serves them."""

    def __init__(self, client: Client, informer: Informer[Workload]) -> None:
        self._client = client
        self._informer = informer
        self._is_served = False
        self._settled = asyncio.Event()
        self._cache: dict[tuple[str, str], tuple[float, Object | None]] = {}

    async def run(self, on_served: Callable[[], None]) -> None:
        """Runs forever, starting once the API is served."""
        await wait_until_served(self._client, WORKLOAD, on_absent=self._settled.set)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._informer.run())
            await self._informer.synced()
            self._is_served = True
            self._settled.set()
            on_served()

    async def settled(self) -> None:
        """Returns once it is known whether the API is served and, if so, every Workload has been listed."""
        await self._settled.wait()

    @property
    def silence_s(self) -> float:
        """Seconds since the watch last received something; 0 without a watch."""
        return self._informer.silence_s if self._is_served else 0.0

    def take(self, raw: Object) -> None:
        """Stores the server's response to our own write."""
        self._informer.put(raw)

    async def see(self, job: Job) -> KueueSeen:
        """Kueue's state for this job. Raises ApiError when a flavor or priority class cannot be read."""
        if not self._is_served:
            return KueueSeen(served=False)
        workloads = tuple(self._informer.of((job.namespace, job.name), job.uid).values())
        admitted = next((each for each in workloads if each.is_true(workload.ADMITTED)), None)
        return KueueSeen(
            workloads=workloads,
            priority=0 if workloads else await self._priority(job),
            places=await self._places(admitted) if admitted else {},
        )

    async def _priority(self, job: Job) -> int | None:
        class_ref = workload.priority_class(job)
        if class_ref is None:
            return 0
        found = await self._get(PRIORITY_CLASSES[class_ref["kind"]], class_ref["name"])
        return None if found is None else int(found.get("value", 0))

    async def _places(self, admitted: Workload) -> Mapping[str, PodSetPlace]:
        names = sorted({name for flavors in admitted.flavors.values() for name in flavors})
        flavors = {name: (await self._get(RESOURCE_FLAVOR, name) or {}).get("spec") or {} for name in names}
        return {role: place(admitted, role, flavors) for role in admitted.flavors}

    async def _get(self, resource: Resource, name: str) -> Object | None:
        """A cluster-scoped object, cached for CACHED_S."""
        key, now = (resource.kind, name), asyncio.get_running_loop().time()
        read_at, found = self._cache.get(key, (float("-inf"), None))
        if found is None or now - read_at > CACHED_S:
            found = await self._client.get(resource, None, name)
            self._cache[key] = (now, found)
        return found
