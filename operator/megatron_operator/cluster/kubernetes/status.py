"""Writes the status of a job. A rejected part is dropped and the rest written: a job can always fail or restart.

The status fits our own schema; a server may still reject a part of it if an older CRD or a policy is in force.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_operator.cluster.kubernetes.client import ApiError, Client
from megatron_operator.cluster.kubernetes.resource import JOB

Object = Mapping[str, Any]
REFUSALS = frozenset({400, 403, 422})
ESSENTIAL = frozenset(
    {
        *("observedGeneration", "phase", "reason", "conditions", "restarts"),
        *("startTime", "completionTime", "lastRestartTime"),
    }
)
UNSAID = "NotWritable"
FIELD = re.compile(r"^status\.(?P<name>\w+)(?:\[(?P<index>\d+)\])?(?:\.(?P<rest>.*))?$")


@dataclass(frozen=True, kw_only=True)
class Written:
    """The job as stored by the server. `refusal`: why a part of the status is missing, None if it is complete."""

    job: Object
    refusal: ApiError | None = None


async def write_status(client: Client, job: Object, status: Object) -> Written:
    """Replaces the status. Raises ApiError if the job changed since it was read (409), or nothing can be written."""
    try:
        return Written(job=await _write(client, job, status))
    except ApiError as error:
        if error.status not in REFUSALS:
            raise
        refusal = error
    for reduced in (without(status, refusal.fields), essential(status)):
        if _changes_nothing(job, reduced):
            return Written(job=job, refusal=refusal)
        try:
            return Written(job=await _write(client, job, reduced), refusal=refusal)
        except ApiError as error:
            if error.status not in REFUSALS:
                raise
    raise refusal


def without(status: Object, fields: Iterable[str]) -> Object:
    """The status without the parts that the server named, such as status.progress.metrics[0].name."""
    reduced = dict(status)
    for field in fields:
        match = FIELD.match(field)
        if match is None:
            continue
        if match["name"] == "conditions" and match["index"]:
            reduced["conditions"] = _plain_condition(reduced["conditions"], int(match["index"]), match["rest"] or "")
        else:
            reduced.pop(match["name"], None)
    return reduced


def essential(status: Object) -> Object:
    """The parts that the operator itself depends on, in their simplest form."""
    kept = {name: value for name, value in status.items() if name in ESSENTIAL}
    conditions = [{**each, "message": ""} for each in status.get("conditions", ())]
    return {**kept, "conditions": conditions}


def _plain_condition(conditions: list[Object], index: int, part: str) -> list[Object]:
    """The conditions with this one's reason or message replaced, or without it if another part of it is rejected."""
    plain = {"message": "", "reason": UNSAID}
    if part in plain:
        return [{**each, part: plain[part]} if at == index else each for at, each in enumerate(conditions)]
    return [each for at, each in enumerate(conditions) if at != index]


def _changes_nothing(job: Object, status: Object) -> bool:
    """Whether a write would only update the time of the last write, and would be rejected again."""
    return set(merge_patch(job.get("status") or {}, status)) <= {"lastUpdatedTime"}


async def _write(client: Client, job: Object, status: Object) -> Object:
    metadata = job["metadata"]
    body = {
        "metadata": {"resourceVersion": metadata["resourceVersion"], "uid": metadata["uid"]},
        "status": merge_patch(job.get("status") or {}, status),
    }
    return await client.patch(JOB, metadata["namespace"], metadata["name"], body, subresource="status")


def merge_patch(old: Object, new: Object) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) that turns `old` into `new`: None removes a key, lists go as a whole."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        if key in old and isinstance(value, Mapping) and isinstance(old[key], Mapping):
            if changes := merge_patch(old[key], value):
                patch[key] = changes
        elif key not in old or old[key] != value:
            patch[key] = value
    return patch
