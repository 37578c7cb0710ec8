"""Applies a plan to a cluster: status first, then deletions, patches, creations, events.

Stops at the first error; the caller reconciles again later. Makes no decisions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from megatron_operator.api import names
from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.cluster.kubernetes.events import Recorder
from megatron_operator.cluster.kubernetes.resource import (
    CLAIM,
    CONFIG_MAP,
    JOB,
    POD,
    RESOURCES,
    SERVICE,
    WORKLOAD,
    Resource,
)
from megatron_operator.cluster.kubernetes.status import write_status
from megatron_operator.core.observe import is_owned
from megatron_operator.core.plan import Event, Patch, Plan, Ref

Object = Mapping[str, Any]
# HTTP statuses that do not go away on retry: a quota, a policy, an object that the server rejects.
REFUSALS = frozenset({400, 403, 422})
logger = logging.getLogger(__name__)


class ForeignObject(Exception):
    """An object with the required name exists and is not the job's; the operator does not touch it."""


class InvalidObject(ApiError):
    """The API server's own validation rejects an object because of the job's manifest."""


class Predecessor(ForeignObject):
    """The object belongs to a deleted job of the same name; the garbage collector will delete it."""


async def apply(
    client: Client,
    recorder: Recorder,
    job: Object,
    plan: Plan,
    now: float,
    *,
    on_written: Callable[[Resource, Object], None],
) -> None:
    """Applies the plan. on_written is called with every object that the server returned.

    Raises ApiError, or ForeignObject when a required name is taken.
    """
    if plan.status is not None:
        written = await write_status(client, job, plan.status)
        if written.job is not job:
            on_written(JOB, written.job)
        if written.refusal:
            await _show_refusal(recorder, job, written.refusal, now)
    try:
        await _change(client, job, plan, on_written)
        await _create_spares(client, recorder, job, plan, now, on_written)
    except (ApiError, ForeignObject):
        # Events are emitted once the status is persisted: the next reconcile, which does the rest, sees no transition.
        if plan.status is not None:
            await _tell(recorder, job, plan, now)
        raise
    await _tell(recorder, job, plan, now)


async def _show_refusal(recorder: Recorder, job: Object, refusal: ApiError, now: float) -> None:
    """Reports what the server rejected of the status, as an event and in the log."""
    metadata = job["metadata"]
    logger.warning(
        "status partly written namespace=%s job=%s error=%.1000s", metadata["namespace"], metadata["name"], refusal
    )
    message = f"The API server rejected a part of the status; the rest is written. {refusal.message}"[:1024]
    await recorder.post(job, Event(type="Warning", reason="StatusIncomplete", message=message), now)


async def _change(client: Client, job: Object, plan: Plan, on_written: Callable[[Resource, Object], None]) -> None:
    namespace = job["metadata"]["namespace"]
    await _all(_delete(client, namespace, ref, on_written) for ref in plan.delete)
    await _all(_patch(client, namespace, patch, on_written) for patch in plan.patch)
    # A pod is rejected, or waits, without the objects it refers to: create those first.
    await _all(_create(client, job, body, on_written) for body in plan.create if body["kind"] != "Pod")
    pods = (body for body in plan.create if body["kind"] == "Pod" and not _is_spare(body))
    await _all(_create(client, job, body, on_written) for body in pods)


async def _create_spares(
    client: Client,
    recorder: Recorder,
    job: Object,
    plan: Plan,
    now: float,
    on_written: Callable[[Resource, Object], None],
) -> None:
    """Creates spares. One that the server rejects (a quota) is reported and tried again later: the gang trains on."""
    for body in filter(_is_spare, plan.create):
        try:
            await _create(client, job, body, on_written)
        except ApiError as error:
            if error.status not in REFUSALS:
                raise
            name = body["metadata"]["name"]
            message = f"Spare pod {name} was not created. {error.message}"[:1024]
            await recorder.post(job, Event(type="Warning", reason="SpareRefused", message=message, of=name), now)
            return


def _is_spare(body: Object) -> bool:
    return bool((body["metadata"].get("labels") or {}).get(names.LABEL_REPLICA_TYPE) == names.SPARE)


async def _tell(recorder: Recorder, job: Object, plan: Plan, now: float) -> None:
    for event in plan.events:
        await recorder.post(job, event, now)


async def _all(requests: Iterable[Awaitable[None]]) -> None:
    """Runs them concurrently and waits for all; then raises the first error, if any."""
    results = await asyncio.gather(*requests, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _delete(client: Client, namespace: str, ref: Ref, on_written: Callable[[Resource, Object], None]) -> None:
    resource = RESOURCES[ref.api_version, ref.kind]
    answer = await client.delete(resource, namespace, ref.name, uid=ref.uid, grace_period_s=ref.grace_period_s)
    if answer and answer.get("kind") == ref.kind:
        on_written(resource, answer)


async def _patch(client: Client, namespace: str, patch: Patch, on_written: Callable[[Resource, Object], None]) -> None:
    resource = RESOURCES[patch.api_version, patch.kind]
    try:
        answer = await client.patch(resource, namespace, patch.name, patch.body, subresource=patch.subresource)
    except ApiError as error:
        if error.is_missing and resource is POD:  # deleted meanwhile
            return
        raise
    on_written(resource, answer)


async def _create(client: Client, job: Object, body: Object, on_written: Callable[[Resource, Object], None]) -> None:
    """Creates the object; succeeds if it already exists and belongs to the job."""
    resource = RESOURCES[body["apiVersion"], body["kind"]]
    namespace, name = job["metadata"]["namespace"], body["metadata"]["name"]
    try:
        on_written(resource, await client.create(resource, namespace, body))
        return
    except ApiError as error:
        if error.is_validation and resource is not WORKLOAD:  # a queue's name is a label, which can be corrected
            raise InvalidObject(error.status, error.reason, error.message) from error
        if not error.already_exists:
            raise
    found = await client.get(resource, namespace, name)
    kind = body["kind"]
    if found and _is_of_predecessor(found, job):
        raise Predecessor(f"{kind} {name} of the deleted job with this name still exists")
    is_claim = resource is CLAIM  # it outlives its job on purpose: the next job with this name reuses it
    if found is None or (is_claim and "deletionTimestamp" in found["metadata"]):
        raise Predecessor(f"{kind} {name} is being deleted; the job waits, and creates another")
    if not is_claim and not is_owned(found, job["metadata"]["uid"]):
        raise ForeignObject(f"{kind} {name} exists and does not belong to this job; delete it or rename the job")
    if is_claim or _is_labeled(found, job):
        on_written(resource, found)
    else:
        await _label(client, resource, body, namespace, on_written)


async def _label(
    client: Client, resource: Resource, body: Object, namespace: str, on_written: Callable[[Resource, Object], None]
) -> None:
    """Restores the labels of one of our objects. Raises ForeignObject for a kind that we may not change."""
    name, kind, labels = body["metadata"]["name"], body["kind"], body["metadata"]["labels"]
    if resource not in (POD, SERVICE, CONFIG_MAP):
        raise ForeignObject(f"{kind} {name} has lost its label {names.LABEL_JOB_NAME}; delete it or restore the label")
    on_written(resource, await client.patch(resource, namespace, name, {"metadata": {"labels": labels}}))


def _is_of_predecessor(found: Object, job: Object) -> bool:
    """Whether the object's controlling owner is another, thus deleted, job with this name."""
    owners = found["metadata"].get("ownerReferences") or ()
    controllers = [owner for owner in owners if owner.get("controller") and owner["kind"] == names.KIND]
    metadata = job["metadata"]
    return any(owner["name"] == metadata["name"] and owner["uid"] != metadata["uid"] for owner in controllers)


def _is_labeled(found: Object, job: Object) -> bool:
    """Whether watches deliver the object: they select by the job's label, which other clients can remove."""
    labels = found["metadata"].get("labels") or {}
    return bool(labels.get(names.LABEL_JOB_NAME) == job["metadata"]["name"])
