"""Posts Kubernetes events about jobs; equal ones are aggregated into one object with a count.

Events are best effort: one that cannot be posted is logged and delays nothing. An event about a transition is
posted once, whoever emits it: its name is derived from the transition.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from megatron_operator.api import names
from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.cluster.kubernetes.resource import EVENT
from megatron_operator.core.plan import Event
from megatron_operator.timestamp import to_text

Object = Mapping[str, Any]
MAX_REMEMBERED = 10_000
logger = logging.getLogger(__name__)


class Recorder:
    """Posts events; an event's name is derived from its transition, so that duplicates are detected."""

    def __init__(self, client: Client, *, instance: str) -> None:
        self._client = client
        self._instance = instance
        self._counts: OrderedDict[str, int] = OrderedDict()

    async def post(self, job: Object, event: Event, now: float) -> None:
        """Posts the event, or increments its count if it exists and belongs to no particular transition."""
        name = event_name(job, event)
        namespace = job["metadata"]["namespace"]
        if event.of and name in self._counts:
            return
        try:
            if name in self._counts:
                await self._count_up(namespace, name, self._counts[name] + 1, now)
            else:
                await self._create(namespace, name, job, event, now)
        except ApiError as error:
            logger.warning("event not posted reason=%s error=%s", event.reason, error)

    async def _create(self, namespace: str, name: str, job: Object, event: Event, now: float) -> None:
        try:
            await self._client.create(EVENT, namespace, self._body(name, job, event, now))
            self._remember(name, 1)
        except ApiError as error:
            if not error.already_exists:
                raise
            if event.of:
                return self._remember(name, 1)
            # Posted before this process started; the patch's response has the count.
            posted = await self._client.patch(EVENT, namespace, name, {"lastTimestamp": to_text(now)})
            await self._count_up(namespace, name, int(posted.get("count") or 1) + 1, now)

    async def _count_up(self, namespace: str, name: str, count: int, now: float) -> None:
        try:
            body = {"count": count, "lastTimestamp": to_text(now)}
            await self._client.patch(EVENT, namespace, name, body)
            self._remember(name, count)
        except ApiError as error:
            self._counts.pop(name, None)
            if not error.is_missing:  # the server keeps events for an hour only
                raise

    def _remember(self, name: str, count: int) -> None:
        self._counts[name] = count
        self._counts.move_to_end(name)
        if len(self._counts) > MAX_REMEMBERED:
            self._counts.popitem(last=False)

    def _body(self, name: str, job: Object, event: Event, now: float) -> Object:
        metadata = job["metadata"]
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata.get("resourceVersion", ""),
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
            "count": 1,
            "firstTimestamp": to_text(now),
            "lastTimestamp": to_text(now),
            "source": {"component": names.FIELD_MANAGER},
            "reportingComponent": names.FIELD_MANAGER,
            "reportingInstance": self._instance,
        }


def event_name(job: Object, event: Event) -> str:
    """The same name for the same job, reason and transition; without a transition, for the same message."""
    metadata = job["metadata"]
    identity = f"{metadata['uid']}\n{event.reason}\n{event.of or event.message}"
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return f"{metadata['name']}.{digest[:16]}"
