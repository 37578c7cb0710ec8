"""Leader election: one replica holds and renews a Lease, as other Kubernetes controllers do.

Measures the age of a lease on its own clock since it last saw the lease change, so that clocks may differ. A
leader that cannot renew in time loses leadership: the process exits and restarts as a follower.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from megatron_operator import clock
from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.cluster.kubernetes.resource import LEASE

Object = Mapping[str, Any]
logger = logging.getLogger(__name__)


class LostLeadership(Exception):
    """The lease could not be renewed in time; another replica may act now."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A candidate and its lease. The leader renews three times within duration_s and gives up after
    two thirds of it, so that it has stopped before another replica can take over."""

    namespace: str
    lease_name: str
    identity: str
    duration_s: float = 15.0

    @property
    def interval_s(self) -> float:
        """Seconds between attempts."""
        return self.duration_s / 5

    @property
    def renew_deadline_s(self) -> float:
        """Seconds without a renewal after which leadership is lost."""
        return self.duration_s * 2 / 3


async def become_leader(client: Client, candidate: Candidate) -> None:
    """Returns once the lease is ours."""
    seen: tuple[str, float] = ("", 0.0)
    while True:
        try:
            lease = await client.get(LEASE, candidate.namespace, candidate.lease_name)
            now = asyncio.get_running_loop().time()
            if lease and lease["metadata"]["resourceVersion"] != seen[0]:
                seen = (lease["metadata"]["resourceVersion"], now)
            if lease is None or _is_free(lease, candidate, now - seen[1]):
                async with asyncio.timeout(candidate.duration_s):
                    await _take(client, candidate, lease)
                logger.info("became leader identity=%s", candidate.identity)
                return
        except (ApiError, TimeoutError) as error:
            logger.warning("lease not acquired yet error=%s", error)
        await asyncio.sleep(candidate.interval_s * random.uniform(0.8, 1.2))


async def stay_leader(client: Client, candidate: Candidate) -> None:
    """Renews forever; raises LostLeadership when that fails for too long or another holds the lease."""
    loop = asyncio.get_running_loop()
    renewed_at = loop.time()
    while True:
        await asyncio.sleep(candidate.interval_s)
        try:
            async with asyncio.timeout_at(renewed_at + candidate.renew_deadline_s):
                await _renew(client, candidate)
            renewed_at = loop.time()
        except (ApiError, TimeoutError) as error:
            logger.warning("lease not renewed error=%s", error)
            if loop.time() - renewed_at >= candidate.renew_deadline_s:
                raise LostLeadership(candidate.identity) from error


async def holder(client: Client, candidate: Candidate) -> str:
    """The identity of the current holder of the lease, "" without one."""
    lease = await client.get(LEASE, candidate.namespace, candidate.lease_name)
    return str(lease["spec"].get("holderIdentity") or "") if lease else ""


async def release(client: Client, candidate: Candidate) -> None:
    """Releases the lease, so that the next leader need not wait for it to expire."""
    lease = await client.get(LEASE, candidate.namespace, candidate.lease_name)
    if lease and lease["spec"].get("holderIdentity") == candidate.identity:
        spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
        await client.update(LEASE, candidate.namespace, {**lease, "spec": spec})


def _is_free(lease: Object, candidate: Candidate, unchanged_s: float) -> bool:
    holder = lease["spec"].get("holderIdentity")
    duration_s = lease["spec"].get("leaseDurationSeconds", candidate.duration_s)
    return holder in (None, "", candidate.identity) or unchanged_s > duration_s


async def _take(client: Client, candidate: Candidate, lease: Object | None) -> None:
    now = _text(clock.now())
    spec = {
        "holderIdentity": candidate.identity,
        "leaseDurationSeconds": max(1, round(candidate.duration_s)),
        "acquireTime": now,
        "renewTime": now,
        "leaseTransitions": (lease["spec"].get("leaseTransitions") or 0) + 1 if lease else 0,
    }
    if lease:
        await client.update(LEASE, candidate.namespace, {**lease, "spec": spec})
        return
    metadata = {"name": candidate.lease_name, "namespace": candidate.namespace}
    body = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}
    await client.create(LEASE, candidate.namespace, body)


async def _renew(client: Client, candidate: Candidate) -> None:
    lease = await client.get(LEASE, candidate.namespace, candidate.lease_name)
    if lease is None or lease["spec"].get("holderIdentity") != candidate.identity:
        raise LostLeadership(candidate.identity)
    spec = {**lease["spec"], "renewTime": _text(clock.now())}
    await client.update(LEASE, candidate.namespace, {**lease, "spec": spec})


def _text(seconds: float) -> str:
    """The time with microseconds, the format of Lease fields."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
