"""The pods of an attempt: one per node, the master first."""

from __future__ import annotations

from typing import Any

from megatron_operator.api import names
from megatron_operator.api.values import Initializer
from megatron_operator.core.desired import gang, labels
from megatron_operator.core.desired.command import command, initializer_command, marker
from megatron_operator.core.desired.environment import environment
from megatron_operator.core.desired.overlay import merged
from megatron_operator.core.desired.service import PORT_NAME
from megatron_operator.core.desired.volumes import mounts, volumes
from megatron_operator.core.job import Job
from megatron_trainjob.exit_codes import RESTARTED

# Between SIGTERM and the trainer's own deadline, a step has to finish and a process group to end.
GRACE_MARGIN_S = 15
DEFAULT_GRACE_S = 30
FILE_SYSTEM_GROUP = 1000


def pods(job: Job, attempt: int) -> list[dict[str, Any]]:
    """All pods of this attempt in node-rank order."""
    return [pod(job, attempt, node_rank) for node_rank in range(job.num_nodes)]


def pod(job: Job, attempt: int, node_rank: int) -> dict[str, Any]:
    """The pod with this node rank, the user's templates laid over it."""
    name = names.pod_name(job.name, attempt, node_rank)
    metadata = labels.metadata(job, name, labels.pod_labels(job, attempt, node_rank))
    annotations = labels.pod_annotations(job, attempt, node_rank)
    generated = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**metadata, "annotations": annotations},
        "spec": _spec(job, attempt, node_rank, name),
    }
    own_template = job.master_template if node_rank == 0 else job.worker_template
    return merged(merged(generated, job.pod_template), own_template)


def _spec(job: Job, attempt: int, node_rank: int, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "hostname": name,
        "subdomain": names.service_name(job.name),
        "restartPolicy": "Never",
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": grace_period_s(job),
        "securityContext": _pod_security(),
        "containers": [_trainer(job, attempt, node_rank)],
        "volumes": volumes(job, attempt),
        **gang.pod_fields(job, attempt),
    }
    if job.initializers:
        spec["initContainers"] = [_init_container(job, each, node_rank) for each in job.initializers]
    if job.service_account_name:
        spec["serviceAccountName"] = job.service_account_name
    if job.image_pull_secrets:
        spec["imagePullSecrets"] = [dict(secret) for secret in job.image_pull_secrets]
    if job.network.host_network:
        spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return spec


def grace_period_s(job: Job) -> int:
    """Seconds from SIGTERM to SIGKILL."""
    checkpoint = job.checkpoint
    return checkpoint.grace_period_s + GRACE_MARGIN_S if checkpoint.save_on_termination else DEFAULT_GRACE_S


def _trainer(job: Job, attempt: int, node_rank: int) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": names.CONTAINER,
        "image": job.image,
        "command": command(job),
        "env": environment(job, attempt, node_rank),
        "resources": _resources(job),
        "securityContext": _container_security(locks_memory=_locks_memory(job)),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts(job),
    }
    if node_rank == 0:
        port = {"name": PORT_NAME, "containerPort": job.network.master_port, "protocol": "TCP"}
        container["ports"] = [port]
    if job.restarts_containers:
        on_signal = {"action": "Restart", "exitCodes": {"operator": "In", "values": list(RESTARTED)}}
        container |= {"restartPolicy": "Never", "restartPolicyRules": [on_signal]}
    if job.image_pull_policy:
        container["imagePullPolicy"] = job.image_pull_policy
    if job.env_from:
        container["envFrom"] = [dict(source) for source in job.env_from]
    return container


def _init_container(job: Job, initializer: Initializer, node_rank: int) -> dict[str, Any]:
    ours = {
        "STORAGE_URI": initializer.storage_uri,
        "TARGET_PATH": initializer.target_path,
        "MARKER": marker(initializer),
    }
    container: dict[str, Any] = {
        "name": initializer.name,
        "image": initializer.image,
        "command": initializer_command(initializer, node_rank),
        "env": [*({"name": key, "value": value} for key, value in ours.items()), *map(dict, initializer.env)],
        "securityContext": _container_security(locks_memory=False),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts(job),
    }
    if initializer.env_from:
        container["envFrom"] = [dict(source) for source in initializer.env_from]
    return container


def _resources(job: Job) -> dict[str, Any]:
    """The manifest's resources with the network devices added; quantities are text, as the API stores them."""
    rdma = job.network.rdma
    devices = {rdma.resource: rdma.count} if rdma else {}
    amounts = {
        kind: {name: str(value) for name, value in {**devices_of, **(job.resources.get(kind) or {})}.items()}
        for kind, devices_of in (("limits", devices), ("requests", {}))
    }
    claims = {"claims": list(job.resources["claims"])} if job.resources.get("claims") else {}
    return {**{kind: values for kind, values in amounts.items() if values}, **claims}


def _pod_security() -> dict[str, Any]:
    """PodSecurity "restricted". The ownership of a large checkpoint volume is changed only if its root's differs."""
    return {
        "runAsNonRoot": True,
        "fsGroup": FILE_SYSTEM_GROUP,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _locks_memory(job: Job) -> bool:
    return job.network.rdma is not None and job.network.rdma.ipc_lock


def _container_security(*, locks_memory: bool) -> dict[str, Any]:
    """No privileges; IPC_LOCK, which pins memory for RDMA, only if the manifest requests it."""
    added = {"add": ["IPC_LOCK"]} if locks_memory else {}
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"], **added}}
