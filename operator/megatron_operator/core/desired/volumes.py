"""Volumes, mounts and the checkpoint claim of a job."""

from __future__ import annotations

from typing import Any

from megatron_operator.api import names
from megatron_operator.core import push
from megatron_operator.core.desired import labels
from megatron_operator.core.desired.command import ARGS_DIRECTORY
from megatron_operator.core.job import Job

ARGS_VOLUME = "mtj-args"
CHECKPOINT_VOLUME = "mtj-checkpoint"
SHARED_MEMORY_VOLUME = "mtj-shm"
SHARED_MEMORY_PATH = "/dev/shm"
MEMORY_VOLUME = "mtj-memory"
MEMORY_PATH = "/run/mtj-memory"
LAUNCHER_VOLUME = "mtj-launcher"
LAUNCHER_PATH = "/run/mtj-launcher"
ATTEMPT_FILE = "attempt"
TOKEN_VOLUME = "mtj-progress-token"
TOKEN_DIRECTORY = "/var/run/secrets/megatrontrain.dev"
TOKEN_FILE = "token"
TOKEN_LIFE_S = 3600


def volumes(job: Job, attempt: int) -> list[dict[str, Any]]:
    """Volumes of each pod: arguments, checkpoints, shared memory, then the user's."""
    ours = [
        {"name": ARGS_VOLUME, "configMap": {"name": names.config_map_name(job.name, attempt)}},
        {"name": CHECKPOINT_VOLUME, **_checkpoint_source(job)},
    ]
    if _needs_shared_memory(job):
        ours.append({"name": SHARED_MEMORY_VOLUME, "emptyDir": _shared_memory(job)})
    if job.checkpoint.memory is not None:
        limited = {"medium": "Memory", "sizeLimit": str(job.checkpoint.memory.size_limit)}
        ours.append({"name": MEMORY_VOLUME, "emptyDir": limited})
    if job.restarts_containers:  # on disk: it outlives the container, and the node's reboot
        ours.append({"name": LAUNCHER_VOLUME, "emptyDir": {"sizeLimit": "1Mi"}})
    if job.progress_push:
        ours.append({"name": TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": _token(job)}]}})
    return [*ours, *(dict(volume) for volume in job.volumes)]


def mounts(job: Job) -> list[dict[str, Any]]:
    """Mounts of the trainer and the initializers."""
    ours: list[dict[str, Any]] = [
        {"name": ARGS_VOLUME, "mountPath": ARGS_DIRECTORY, "readOnly": True},
        {"name": CHECKPOINT_VOLUME, "mountPath": job.checkpoint.mount_path},
    ]
    if _needs_shared_memory(job):
        ours.append({"name": SHARED_MEMORY_VOLUME, "mountPath": SHARED_MEMORY_PATH})
    if job.checkpoint.memory is not None:
        ours.append({"name": MEMORY_VOLUME, "mountPath": MEMORY_PATH})
    if job.restarts_containers:
        ours.append({"name": LAUNCHER_VOLUME, "mountPath": LAUNCHER_PATH})
    if job.progress_push:
        ours.append({"name": TOKEN_VOLUME, "mountPath": TOKEN_DIRECTORY, "readOnly": True})
    return [*ours, *(dict(mount) for mount in job.volume_mounts)]


def claim(job: Job) -> dict[str, Any] | None:
    """The checkpoint claim if the manifest has a template; without an owner if it must outlive the job."""
    template = job.checkpoint.claim_template
    if template is None:
        return None
    metadata = labels.metadata(job, names.claim_name(job.name), {})
    if job.checkpoint.retain_on_delete:
        metadata.pop("ownerReferences", None)
    given = template.get("metadata") or {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            **metadata,
            "labels": {**(given.get("labels") or {}), **metadata["labels"]},
            **({"annotations": dict(given["annotations"])} if given.get("annotations") else {}),
        },
        "spec": dict(template["spec"]),
    }


def _checkpoint_source(job: Job) -> dict[str, Any]:
    if job.checkpoint.claim_template is not None:
        return {"persistentVolumeClaim": {"claimName": names.claim_name(job.name)}}
    if job.checkpoint.claim_name is not None:
        return {"persistentVolumeClaim": {"claimName": job.checkpoint.claim_name}}
    return {"emptyDir": {}}


def _token(job: Job) -> dict[str, Any]:
    """A token that authenticates this pod for this job's progress and nothing else."""
    audience = push.audience(job.namespace, job.name, job.uid)
    return {"audience": audience, "expirationSeconds": TOKEN_LIFE_S, "path": TOKEN_FILE}


def _needs_shared_memory(job: Job) -> bool:
    """NCCL and data loaders need more than the 64 MiB of a container's own /dev/shm, so it is always there."""
    return all(mount.get("mountPath") != SHARED_MEMORY_PATH for mount in job.volume_mounts)


def _shared_memory(job: Job) -> dict[str, Any]:
    limit = {} if job.shm_size is None else {"sizeLimit": str(job.shm_size)}
    return {"medium": "Memory", **limit}
