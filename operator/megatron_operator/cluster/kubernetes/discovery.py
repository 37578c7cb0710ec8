"""Checks whether the cluster serves an API of another component, and waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.cluster.kubernetes.resource import Resource

ABSENT_INTERVAL_S = 60.0
UNKNOWN_INTERVAL_S = 2.0
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
