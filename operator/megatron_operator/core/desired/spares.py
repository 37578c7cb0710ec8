"""A spare pod: what of a worker decides about its node and devices, and a program that waits to be deleted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_operator.api import names
from megatron_operator.core.desired import labels
from megatron_operator.core.desired.pods import pod
from megatron_operator.core.job import Job

Object = Mapping[str, Any]
# The first process of a container has to ask for signals.
WAIT = ("sh", "-c", "trap 'exit 0' TERM; sleep infinity & wait")
STOP_S = 5
OF_CONTAINER = ("name", "image", "imagePullPolicy", "resources", "securityContext")
NOT_OF_POD = ("hostname", "subdomain", "volumes", "initContainers", "schedulingGroup")
"""Addresses, downloads, volumes (of which one may be for one node alone), and the group of the gang, which is whole."""
WORKER_RANK = 1


def spare(job: Job, attempt: int, index: int) -> dict[str, Any]:
    """The spare of a gang with this index, of the image that its node then has."""
    worker = pod(job, attempt, WORKER_RANK)
    trainer: Object = next(each for each in worker["spec"]["containers"] if each["name"] == names.CONTAINER)
    container = {name: trainer[name] for name in OF_CONTAINER if name in trainer}
    spec = {name: value for name, value in worker["spec"].items() if name not in NOT_OF_POD}
    metadata = labels.metadata(
        job, names.spare_name(job.name, attempt, index), labels.spare_labels(job, attempt, index)
    )
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**metadata, "annotations": labels.spare_annotations(job)},
        "spec": {
            **spec,
            "terminationGracePeriodSeconds": STOP_S,
            "containers": [{**container, "command": list(WAIT)}],
        },
    }
