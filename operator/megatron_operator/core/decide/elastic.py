"""Elastic jobs: a gang with another number of nodes than the job now asks for continues with the new number."""

from __future__ import annotations

from megatron_operator.core.decide.decision import Resize
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen


def decide(job: Job, seen: Seen, now: float) -> Resize | None:
    """Stop the gang, so that it saves and comes again in the new size; None for one of the right size."""
    if job.elastic is None:
        return None
    before = next((pod.num_nodes for pod in seen.current if pod.num_nodes not in (None, job.num_nodes)), None)
    if before is None:
        return None
    return Resize(
        message=f"spec.numNodes changed from {before} to {job.num_nodes}; the job goes on from its checkpoint."
    )
