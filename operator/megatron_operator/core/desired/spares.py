"""A spare pod: what of a worker decides about its node and devices, and a program that waits to be deleted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_operator.api import names
from megatron_operator.core.desired import labels
from megatron_operator.core.desired.pods import pod
from megatron_operator.core.desired.quantity import amount, total
from megatron_operator.core.job import Job

Object = Mapping[str, Any]
# The first process of a container has to ask for signals.
WAIT = ("sh", "-c", "trap 'exit 0' TERM; sleep infinity & wait")
STOP_S = 5
OF_CONTAINER = ("name", "image", "imagePullPolicy", "securityContext")
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
            "containers": [{**container, "command": list(WAIT), "resources": _resources(worker["spec"])}],
        },
    }


def _resources(spec: Object) -> dict[str, Any]:
    """What the containers of a pod take of its node together, as the resources of one."""
    containers = [*(spec.get("initContainers") or ()), *spec["containers"]]
    given = [each["resources"] for each in containers if each.get("resources")]
    if len(given) < 2:
        return dict(given[0]) if given else {}
    limited = {name for each in given for name in each.get("limits") or ()}
    limits = {name: value for name, value in _taken(spec, ("requests", "limits")).items() if name in limited}
    claims = {claim["name"]: claim for each in given for claim in each.get("claims") or ()}
    taken = {"limits": limits, "requests": _taken(spec, ("limits", "requests")), "claims": [*claims.values()]}
    return {kind: amounts for kind, amounts in taken.items() if amounts}


def _taken(spec: Object, kinds: tuple[str, str]) -> dict[str, str]:
    """The most that runs at a time, by resource: init containers run one after the other, sidecars among them on.

    kinds: of a container's two amounts the latter counts, where it has both.
    """
    lasting: dict[str, str] = {}
    most: dict[str, str] = {}
    for each in spec.get("initContainers") or ():
        running = _sum(lasting, _amounts(each, kinds))
        most = _larger(most, running)
        lasting = running if each.get("restartPolicy") == "Always" else lasting
    for each in spec["containers"]:
        lasting = _sum(lasting, _amounts(each, kinds))
    return _larger(most, lasting)


def _amounts(container: Object, kinds: tuple[str, str]) -> dict[str, str]:
    resources: Object = container.get("resources") or {}
    return {name: str(value) for kind in kinds for name, value in (resources.get(kind) or {}).items()}


def _sum(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    both = first.keys() & second.keys()
    return {**first, **second, **{name: total(first[name], second[name]) for name in both}}


def _larger(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    both = first.keys() & second.keys()
    return {**first, **second, **{name: max(first[name], second[name], key=amount) for name in both}}
