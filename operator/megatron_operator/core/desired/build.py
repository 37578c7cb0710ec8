"""All objects of an attempt, and the missing ones among them, in creation order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_operator.api import names
from megatron_operator.core.desired import gang, labels, placement, workload
from megatron_operator.core.desired.config_map import config_map
from megatron_operator.core.desired.pods import pod, pods
from megatron_operator.core.desired.service import service
from megatron_operator.core.desired.spares import spare
from megatron_operator.core.desired.volumes import claim
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen

Object = Mapping[str, Any]


def everything(job: Job, attempt: int) -> tuple[Object, ...]:
    """Every object of this attempt: what `mtj render` shows."""
    group, checkpoint = gang.pod_group(job, attempt), claim(job)
    return (
        *([checkpoint] if checkpoint else ()),
        config_map(job, attempt),
        service(job, attempt),
        *([group] if group else ()),
        *pods(job, attempt),
        *(spare(job, attempt, index) for index in range(job.scheduling.spares)),
    )


def missing(job: Job, seen: Seen, away: Sequence[str] = ()) -> tuple[Object, ...]:
    """The objects to create now; existing ones are not built. away: nodes on which no pod must run."""
    pods = (placement.away_from(each, away) for each in _missing_pods(job, seen))
    return (*_missing_claim(job, seen), *_missing_parts(job, seen), *pods)


def spares(job: Job, seen: Seen, indexes: Sequence[int], away: Sequence[str] = ()) -> tuple[Object, ...]:
    """The spare pods with these indexes, with the placement that the admitting queue assigned."""
    admitted = workload.current(job, seen) if job.has_workload else None
    bodies = (spare(job, seen.pod_attempt, index) for index in indexes)
    placed = (workload.placed(each, names.SPARE, seen, admitted.name) if admitted else each for each in bodies)
    return tuple(placement.away_from(each, away) for each in placed)


def _missing_claim(job: Job, seen: Seen) -> tuple[Object, ...]:
    wanted = claim(job)
    return (wanted,) if wanted and wanted["metadata"]["name"] not in seen.claims else ()


def _missing_parts(job: Job, seen: Seen) -> tuple[Object, ...]:
    attempt, parts = seen.pod_attempt, []
    if names.config_map_name(job.name, attempt) not in seen.config_maps:
        parts.append(config_map(job, attempt))
    if seen.service_selector is None:
        parts.append(service(job, attempt))
    group = gang.pod_group(job, attempt)
    if group and not _has_group(job, seen):
        parts.append(group)
    return tuple(parts)


def _missing_pods(job: Job, seen: Seen) -> tuple[Object, ...]:
    """Pods of a Volcano group wait until its queue has admitted the group."""
    phase = seen.gang.phase if seen.gang and _has_group(job, seen) else ""
    if not gang.admits_pods(phase, job.scheduling.gang):
        return ()
    there = {each.name for each in seen.current}
    expected = names.replica_names(job.name, seen.pod_attempt, job.num_nodes)
    return tuple(_placed_pod(job, seen, rank) for rank, name in enumerate(expected) if name not in there)


def _placed_pod(job: Job, seen: Seen, rank: int) -> Object:
    """The pod with this rank, with the placement that the admitting queue assigned."""
    body = pod(job, seen.pod_attempt, rank)
    admitted = workload.current(job, seen) if job.has_workload else None
    return workload.placed(body, labels.role(rank), seen, admitted.name) if admitted else body


def _has_group(job: Job, seen: Seen) -> bool:
    return seen.gang is not None and seen.gang.name == names.group_name(job.name, seen.pod_attempt)
