"""Checks what the cluster can do: whether it serves an API of another component, and waits for it; its version."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.cluster.kubernetes.resource import VERSION, Resource

CONTAINER_RESTARTS = (1, 35)
ABSENT_INTERVAL_S = 60.0
UNKNOWN_INTERVAL_S = 2.0
REFUSED = frozenset({401, 403, 404})  # where the role system:public-info-viewer was taken from service accounts
logger = logging.getLogger(__name__)


async def wait_until_served(
    client: Client, resource: Resource, *, on_absent: Callable[[], None] = lambda: None
) -> None:
    """Returns once the resource is served. on_absent is called each time the server says that it is not."""
    while True:
        served = await _is_served(client, resource)
        if served:
            return
        if served is False:
            on_absent()
        await asyncio.sleep(UNKNOWN_INTERVAL_S if served is None else ABSENT_INTERVAL_S)


async def restarts_containers(client: Client) -> bool:
    """Whether the server knows rules by which a container starts again (Kubernetes 1.35); asked until it answers.

    An older one refuses pods with such rules. One on which they are switched off drops them from a pod. One that does
    not tell us its version is taken for an older one.
    """
    while True:
        try:
            answer = await client.request("get", VERSION, "/version")
            return version(answer) >= CONTAINER_RESTARTS
        except ApiError as error:
            logger.warning("version of the server unknown error=%s", error)
            if error.status in REFUSED:
                return False
        await asyncio.sleep(UNKNOWN_INTERVAL_S)


def version(answer: Mapping[str, Any]) -> tuple[int, ...]:
    """Major and minor version; some distributions put a plus sign behind the minor one."""
    numbers = [str(answer.get(part, "")).rstrip("+") for part in ("major", "minor")]
    return tuple(int(each) if each.isdecimal() else 0 for each in numbers)


async def _is_served(client: Client, resource: Resource) -> bool | None:
    """None if the server could not say."""
    try:
        answer = await client.request("get", resource, resource.root)
    except ApiError as error:
        if error.is_missing:
            return False
        logger.warning("discovery failed path=%s error=%s", resource.root, error)
        return None
    return any(entry["name"] == resource.plural for entry in answer.get("resources", ()))
