"""Spare pods (scheduling.spares): each holds a node without ranks, so that a gang that lost one of its own finds room.

They are created once the whole gang has its nodes, and deleted when a later gang is: its pods then take their nodes.
Meanwhile they stay, so that no one else does. A gang never waits for a spare, and no failure of one counts.
"""

from __future__ import annotations

from collections.abc import Collection

from megatron_operator.api import names
from megatron_operator.core.decide import node_exclusion
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Pod, Seen

# One that ends as soon as it starts, as where the image has no shell, is created so often and no more.
LEAST_AGE_S = 60.0


def to_create(job: Job, seen: Seen) -> tuple[int, ...]:
    """Indexes of the spares that are missing, none while a pod of the gang has no node."""
    if len(seen.current) < job.num_nodes or not all(pod.node for pod in seen.current):
        return ()
    there = {pod.name for pod in seen.spares}
    wanted = range(job.scheduling.spares)
    return tuple(index for index in wanted if names.spare_name(job.name, seen.pod_attempt, index) not in there)


def to_delete(job: Job, seen: Seen, away: Collection[str], now: float) -> tuple[Pod, ...]:
    """Spares of earlier gangs, once the next is created, and those to be created again.

    These have ended, or wait for a node and may use one that is no longer among those to keep away from.
    """
    return tuple(
        pod
        for pod in seen.spares
        if pod.attempt != seen.pod_attempt
        or pod.index >= job.scheduling.spares
        or _is_over(pod, now)
        or (node_exclusion.waits_for_a_node(pod) and pod.kept_from.difference(away))
    )


def wake_at(job: Job, seen: Seen, now: float) -> float | None:
    """When the first of those that have ended is created again; None without one."""
    return min((pod.created_at + LEAST_AGE_S for pod in seen.spares if pod.is_finished), default=None)


def _is_over(pod: Pod, now: float) -> bool:
    return pod.is_finished and now >= pod.created_at + LEAST_AGE_S
