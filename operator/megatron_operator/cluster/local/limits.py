"""What a manifest asks of a cluster and one machine does not do: said once, before the job starts. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_operator.api import names
from megatron_operator.core.job import Job


def ignored(job: Job) -> tuple[str, ...]:
    """One line for each thing that has no effect on one machine."""
    return (*_environment(job), *_containers(job), *_scheduling(job))


def _environment(job: Job) -> Iterator[str]:
    for entry in job.env:
        if "valueFrom" in entry:
            yield f"spec.env {entry['name']}: valueFrom is not read here; this shell's variable of that name is used"
    if job.env_from or any(each.env_from for each in job.initializers):
        yield "envFrom is not read here; the variables of this shell are used"


def _containers(job: Job) -> Iterator[str]:
    for template in (job.pod_template, job.master_template, job.worker_template):
        for container in template.get("spec", {}).get("containers") or ():
            if container["name"] != names.CONTAINER:
                yield f"container {container['name']} is not started here"


def _scheduling(job: Job) -> Iterator[str]:
    if job.scheduling.gang != "None" or job.kueue_queue:
        yield "queues and gang scheduling have no effect here; all pods start at once"
    if job.run_policy.ttl_s is not None:
        yield "ttlSecondsAfterFinished has no effect here; the state folder stays"
