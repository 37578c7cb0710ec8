"""Pods of a job that watches do not deliver, because the label by which they select was removed.

Pod names are derived from job and attempt, so the expected pods can be fetched by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.resource import POD
from megatron_operator.core.observe import Pod, is_owned, read_pod
from megatron_operator.guard import Guard


async def find(client: Client, guard: Guard, namespace: str, job_uid: str, pods: Iterable[str]) -> list[Pod]:
    """Those of these pods that exist and belong to the job. Raises ApiError."""
    found = await asyncio.gather(*(client.get(POD, namespace, name) for name in pods))
    owned = (raw for raw in found if raw is not None and is_owned(raw, job_uid))
    return guard.read_all("pods", read_pod, owned)
