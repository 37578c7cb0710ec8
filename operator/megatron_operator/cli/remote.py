"""Jobs on a cluster for the commands status, logs and wait: read with the kubeconfig's permissions, never changed.

Imported only when a cluster is requested (cli/cluster.py), so that the other commands need no HTTP client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_operator.api import names
from megatron_operator.cli.output import Unanswered, Unreachable
from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig, namespace_of
from megatron_operator.cluster.kubernetes.resource import EVENT, JOB, POD
from megatron_operator.process import settings

Object = Mapping[str, Any]
POLL_S = 1.0
ENDED = ("Succeeded", "Failed", "Suspended")


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """The jobs of one namespace of a cluster."""

    client: Client
    namespace: str

    async def all(self) -> Sequence[Object]:
        """Every job of the namespace."""
        page = await self.client.list_page(JOB, self.namespace, {}, metadata_only=False)
        jobs: Sequence[Object] = page["items"] or ()
        return jobs

    async def get(self, name: str) -> Object:
        """The job. Raises Unreachable if it does not exist."""
        found = await self.client.get(JOB, self.namespace, name)
        if found is None:
            raise Unreachable(f"no job {name} in namespace {self.namespace}; -n names another")
        return found

    async def events(self, name: str) -> list[Object]:
        """The events about the job, oldest first."""
        selector = f"involvedObject.kind={names.KIND},involvedObject.name={name}"
        page = await self.client.list_page(EVENT, self.namespace, {"fieldSelector": selector}, metadata_only=False)
        return sorted(page["items"] or (), key=lambda event: event.get("lastTimestamp") or "")

    async def newest_container(self, name: str, part: str) -> tuple[str, int] | None:
        """The newest pod of the job whose name contains this and whose trainer has started, and its container's number.

        None without one. A container that is started again in its pod has a log of its own.
        """
        selector = {"labelSelector": f"{names.LABEL_JOB_NAME}={name}"}
        page = await self.client.list_page(POD, self.namespace, selector, metadata_only=False)
        begun = [pod for pod in page["items"] or () if part in pod["metadata"]["name"] and _has_begun(pod)]
        newest = max(begun, key=lambda pod: _attempt(name, pod), default=None)
        return None if newest is None else (str(newest["metadata"]["name"]), _container_number(newest))

    async def write_log(self, name: str, part: str, write: Callable[[bytes], None], *, follow: bool) -> bool:
        """Writes the log of the newest such container, followed until the job ends; whether there was one."""
        shown: tuple[str, int] | None = None
        while True:
            job = await self.get(name)
            newest = await self.newest_container(name, part)
            if newest is not None and newest != shown:
                parameters = {"container": names.CONTAINER, "follow": str(follow).lower()}
                async for chunk in self.client.read_text(POD, self.namespace, newest[0], "log", parameters):
                    write(chunk)
                shown = newest
            elif not follow or (job.get("status") or {}).get("phase") in ENDED:
                return shown is not None
            if follow:
                await asyncio.sleep(POLL_S)


def ask[Answer](
    kubeconfig: Path | None, namespace: str | None, question: Callable[[Jobs], Awaitable[Answer]]
) -> Answer:
    """The result of a query about the jobs of a namespace, the kubeconfig's by default. Raises Unreachable."""
    path = kubeconfig or settings.user_kubeconfig()
    try:
        connection, inside = from_kubeconfig(path), namespace or namespace_of(path)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise Unreachable(f"{path}: {problem}; --kubeconfig names another file") from problem

    async def answer() -> Answer:
        async with Client(connection, timeout_s=30.0) as client:
            return await question(Jobs(client=client, namespace=inside))

    try:
        return asyncio.run(answer())
    except ApiError as refusal:
        raise Unanswered(f"{connection.server}: {refusal}") from refusal


def _has_begun(pod: Object) -> bool:
    """Whether its trainer runs or has run: a waiting container has no log."""
    state = _trainer(pod).get("state") or {}
    return "running" in state or "terminated" in state


def _container_number(pod: Object) -> int:
    return int(_trainer(pod).get("restartCount") or 0)


def _trainer(pod: Object) -> Object:
    """The status of the trainer's container, {} before it has one."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return next((each for each in statuses if each.get("name") == names.CONTAINER), {})


def _attempt(job: str, pod: Object) -> int:
    place = names.place_of(pod["metadata"]["name"], job)
    return place.attempt if place else -1
