"""Elastic jobs: a gang whose size differs from spec.numNodes is recreated with the new size."""

from __future__ import annotations

from megatron_operator.core.decide.decision import Resize
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen


def decide(job: Job, seen: Seen, now: float) -> Resize | None:
    """Stop the gang, so that it saves and is recreated with the new size; None if the size is right."""
    if job.elastic is None:
        return None
    before = next((pod.num_nodes for pod in seen.current if pod.num_nodes not in (None, job.num_nodes)), None)
    if before is None:
        return None
    return Resize(
        message=f"spec.numNodes changed from {before} to {job.num_nodes}; the job continues from its checkpoint."
    )
