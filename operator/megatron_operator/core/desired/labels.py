"""Metadata of every child object: labels, owner, and what queues read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_operator.api import names
from megatron_operator.core.job import Job


def metadata(job: Job, name: str, labels: dict[str, str]) -> dict[str, Any]:
    """Metadata of a child that is deleted with the job. A job without a uid owns nothing yet."""
    return {
        "name": name,
        "namespace": job.namespace,
        "labels": {**common(job), **labels},
        **({"ownerReferences": [owner(job)]} if job.uid else {}),
    }


def common(job: Job) -> dict[str, str]:
    """Labels by which people and tools select everything that belongs to a job."""
    return {
        "app.kubernetes.io/name": "megatron-train",
        "app.kubernetes.io/instance": job.name,
        "app.kubernetes.io/managed-by": names.FIELD_MANAGER,
        names.LABEL_JOB_NAME: job.name,
    }


def owner(job: Job) -> dict[str, Any]:
    """The job as controlling owner: the garbage collector deletes the child, without a finalizer."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def role(node_rank: int) -> names.Role:
    """Node rank 0 is the master, all others are workers."""
    return "master" if node_rank == 0 else "worker"


def pod_labels(job: Job, attempt: int, node_rank: int) -> dict[str, str]:
    """Labels of one pod, including those that a queue or gang scheduler reads."""
    place = names.Place(attempt=attempt, role=role(node_rank), index=max(node_rank - 1, 0))
    labels = {
        **_copied(job.labels, job.copy_to_pods.labels),
        **names.place_labels(job.name, place),
    }
    group = names.group_name(job.name, attempt)
    if job.has_pod_group:
        copied = {key: job.labels[key] for key in (names.KUEUE_QUEUE, names.KUEUE_PRIORITY) if key in job.labels}
        labels |= {**copied, names.KUEUE_GROUP_NAME: group}
    if job.scheduling.gang == "Coscheduling":
        labels[names.COSCHEDULING_GROUP] = group
    return labels


def spare_labels(job: Job, attempt: int, index: int) -> dict[str, str]:
    """Labels of a spare pod. In a queue it is a pod of its own: the gang's group is complete without it."""
    place = names.Place(attempt=attempt, role="spare", index=index)
    queue = {key: job.labels[key] for key in (names.KUEUE_QUEUE, names.KUEUE_PRIORITY) if key in job.labels}
    return {
        **_copied(job.labels, job.copy_to_pods.labels),
        **names.place_labels(job.name, place),
        **(queue if job.has_pod_group else {}),
    }


def spare_annotations(job: Job) -> dict[str, str]:
    """Annotations of a spare pod."""
    is_queued = job.scheduling.gang == "Volcano" and job.scheduling.queue is not None
    queue = {names.VOLCANO_QUEUE: str(job.scheduling.queue)} if is_queued else {}
    return {**_copied(job.annotations, job.copy_to_pods.annotations), **queue}


def pod_annotations(job: Job, attempt: int, node_rank: int) -> dict[str, str]:
    """Annotations of one pod."""
    annotations = {
        **_copied(job.annotations, job.copy_to_pods.annotations),
        names.ANNOTATION_ARGS_HASH: job.args_hash,
        names.ANNOTATION_DEFAULT_CONTAINER: names.CONTAINER,
    }
    if job.elastic:
        annotations[names.ANNOTATION_NUM_NODES] = str(job.num_nodes)
    if job.network.multus_networks:
        annotations[names.ANNOTATION_MULTUS] = ",".join(job.network.multus_networks)
    if job.scheduling.gang == "Volcano":
        annotations[names.VOLCANO_GROUP_NAME] = names.group_name(job.name, attempt)
        annotations[names.VOLCANO_TASK] = role(node_rank)
    return {**annotations, **_kueue_group(job), **_kueue_topology(job)}


def _kueue_group(job: Job) -> dict[str, str]:
    """The group's size; a group that lost its pods is finished, since the next attempt queues again."""
    if not job.has_pod_group:
        return {}
    return {names.KUEUE_GROUP_TOTAL: str(job.num_nodes), names.KUEUE_RETRIABLE: "false"}


def _kueue_topology(job: Job) -> dict[str, str]:
    """The pods' topology domain. Kueue may separate the pod sets of master and workers unless they are grouped."""
    topology = job.scheduling.topology
    if job.kueue_queue is None or topology is None or topology.key is None:
        return {}
    is_required = topology.mode == "Required"
    key = names.KUEUE_REQUIRED_TOPOLOGY if is_required else names.KUEUE_PREFERRED_TOPOLOGY
    return {key: topology.key, **({names.KUEUE_POD_SET_GROUP: names.KUEUE_GANG} if job.num_nodes > 1 else {})}


def _copied(given: Mapping[str, str], wanted: tuple[str, ...]) -> dict[str, str]:
    """Those selected by full name, or by a prefix ending in *."""
    prefixes = tuple(each.removesuffix("*") for each in wanted if each.endswith("*"))
    found = {key: value for key, value in given.items() if key in wanted or key.startswith(prefixes)}
    return {key: value for key, value in found.items() if not key.startswith(names.NEVER_COPIED)}
