"""The environment of the trainer container: topology and identity. Arguments never travel this way."""

from __future__ import annotations

from typing import Any

from megatron_operator.api import names
from megatron_operator.core import push
from megatron_operator.core.desired.command import ARGS_DIRECTORY
from megatron_operator.core.desired.config_map import AUTHORITY_FILE
from megatron_operator.core.desired.volumes import TOKEN_DIRECTORY, TOKEN_FILE
from megatron_operator.core.job import Job

# Names that only the operator sets; a manifest that sets one of them is refused.
RESERVED = frozenset(
    {
        "MASTER_ADDR",
        "MASTER_PORT",
        "WORLD_SIZE",
        "RANK",
        "LOCAL_RANK",
        "NNODES",
        "NODE_RANK",
        "NPROC_PER_NODE",
        "PET_MASTER_ADDR",
        "PET_MASTER_PORT",
        "PET_NNODES",
        "PET_NODE_RANK",
        "PET_NPROC_PER_NODE",
        "MTJ_JOB_NAME",
        "MTJ_JOB_UID",
        "MTJ_RESTART_ATTEMPT",
        "MTJ_RESUME",
        "MTJ_SAVE_ON_TERM",
        "MTJ_ADOPT",
    }
)


def environment(job: Job, attempt: int, node_rank: int) -> list[dict[str, Any]]:
    """Environment of the pod with this node rank: ours, then NCCL's, then the user's.

    RANK is the node's rank, as PyTorchJob has it; a launcher replaces it by the process's own rank.
    """
    values = {
        **_topology(job, attempt, node_rank),
        **_identity(job, attempt),
        **_progress_push(job, node_rank),
        **job.network.nccl_env,
    }
    ours = [{"name": name, "value": value} for name, value in values.items()]
    return [*ours, *(dict(entry) for entry in job.env)]


def _progress_push(job: Job, node_rank: int) -> dict[str, str]:
    """Where the master pushes its progress, under the names that clients of Kubeflow Trainer read."""
    if job.progress_push is None or node_rank != 0:
        return {}
    return {
        "KUBEFLOW_TRAINER_SERVER_URL": job.progress_push.url + push.path(job.namespace, job.name),
        "KUBEFLOW_TRAINER_SERVER_CA_CERT": f"{ARGS_DIRECTORY}/{AUTHORITY_FILE}",
        "KUBEFLOW_TRAINER_SERVER_TOKEN": f"{TOKEN_DIRECTORY}/{TOKEN_FILE}",
    }


def _topology(job: Job, attempt: int, node_rank: int) -> dict[str, str]:
    master = names.pod_name(job.name, attempt, 0)
    rendezvous = {
        "MASTER_ADDR": f"{master}.{names.service_name(job.name)}",
        "MASTER_PORT": str(job.network.master_port),
        "NNODES": str(job.num_nodes),
        "NODE_RANK": str(node_rank),
        "NPROC_PER_NODE": str(job.nproc_per_node),
    }
    torchrun = {f"PET_{name}": value for name, value in rendezvous.items()}
    return {**rendezvous, "WORLD_SIZE": str(job.world_size), "RANK": str(node_rank), **torchrun}


def _identity(job: Job, attempt: int) -> dict[str, str]:
    return {
        "MTJ_JOB_NAME": job.name,
        "MTJ_JOB_UID": job.uid,
        "MTJ_RESTART_ATTEMPT": str(attempt),
        "MTJ_RESUME": job.checkpoint.resume,
        "MTJ_SAVE_ON_TERM": "1" if job.checkpoint.save_on_termination else "0",
        "PYTHONUNBUFFERED": "1",
        **({"MTJ_ADOPT": "1"} if job.checkpoint.adopts else {}),
    }
