"""Pods of a job that watches do not show, because somebody took off the label by which these select.

The names of a job's pods follow from job and attempt, so those that ought to be there are asked for by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.resource import POD
from megatron_operator.core.observe import Pod, is_owned, read_pod
from megatron_operator.guard import Guard


async def find(client: Client, guard: Guard, namespace: str, job_uid: str, pods: Iterable[str]) -> list[Pod]:
    """Those of these pods that there are, and that are the job's. Raises ApiError."""
    found = await asyncio.gather(*(client.get(POD, namespace, name) for name in pods))
    owned = (raw for raw in found if raw is not None and is_owned(raw, job_uid))
    return guard.read_all("pods", read_pod, owned)
