"""The environment of the trainer container: topology and identity. Arguments never travel this way."""

from __future__ import annotations

from typing import Any

from megatron_operator.api import names
from megatron_operator.core import push
from megatron_operator.core.desired.command import ARGS_DIRECTORY
from megatron_operator.core.desired.config_map import AUTHORITY_FILE
from megatron_operator.core.desired.quantity import amount
from megatron_operator.core.desired.volumes import ATTEMPT_FILE, LAUNCHER_PATH, MEMORY_PATH, TOKEN_DIRECTORY, TOKEN_FILE
from megatron_operator.core.job import Job
from megatron_trainjob import environment as variables


def environment(job: Job, attempt: int, node_rank: int) -> list[dict[str, Any]]:
    """Environment of the pod with this node rank: ours, then NCCL's, then the user's.

    The API server keeps each variable twice, as value and as managed field: what has its default is left out.
    RANK is the node's rank, as PyTorchJob has it; a launcher replaces it by the process's own rank.
    """
    values = {
        **_topology(job, attempt, node_rank),
        **_identity(job, attempt),
        **_memory(job),
        **_progress_push(job, node_rank),
        **({variables.ATTEMPT_FILE: f"{LAUNCHER_PATH}/{ATTEMPT_FILE}"} if job.restarts_containers else {}),
        **job.network.nccl_env,
    }
    ours = [{"name": name, "value": value} for name, value in values.items()]
    return [*ours, *(dict(entry) for entry in job.env)]


def _memory(job: Job) -> dict[str, str]:
    """Where checkpoints in memory go, how often, and what they may take."""
    memory = job.checkpoint.memory
    if memory is None:
        return {}
    return {
        variables.MEMORY_FOLDER: MEMORY_PATH,
        variables.MEMORY_INTERVAL: str(memory.interval),
        variables.MEMORY_LIMIT: str(int(amount(str(memory.size_limit)))),
    }


def _progress_push(job: Job, node_rank: int) -> dict[str, str]:
    """Where launchers report, and the master its progress, under the names that clients of Kubeflow Trainer read."""
    if job.progress_push is None or not (node_rank == 0 or job.failure_policy.in_place_restart):
        return {}
    server = job.progress_push.url
    progress = {variables.PUSH_URL: server + push.path(job.namespace, job.name)}
    launcher = {variables.LAUNCHER_URL: server + push.launcher_path(job.namespace, job.name)}
    return {
        **(progress if node_rank == 0 else {}),
        **(launcher if job.failure_policy.in_place_restart else {}),
        variables.PUSH_AUTHORITY_FILE: f"{ARGS_DIRECTORY}/{AUTHORITY_FILE}",
        variables.PUSH_TOKEN_FILE: f"{TOKEN_DIRECTORY}/{TOKEN_FILE}",
    }


def _topology(job: Job, attempt: int, node_rank: int) -> dict[str, str]:
    master = names.pod_name(job.name, attempt, 0)
    rendezvous = {
        variables.MASTER_ADDRESS: f"{master}.{names.service_name(job.name)}",
        variables.MASTER_PORT: str(job.network.master_port),
        variables.NUM_NODES: str(job.num_nodes),
        variables.NODE_RANK: str(node_rank),
        variables.PROCESSES_PER_NODE: str(job.nproc_per_node),
    }
    return {**rendezvous, **(_for_own_program(job, node_rank, rendezvous) if job.command else {})}


def _for_own_program(job: Job, node_rank: int, rendezvous: dict[str, str]) -> dict[str, str]:
    """What a program of the user's own may read, such as torchrun; our launcher sets these for its ranks."""
    return {
        variables.WORLD_SIZE: str(job.world_size),
        variables.RANK: str(node_rank),
        "PYTHONUNBUFFERED": "1",
        **{variables.of_torchrun(name): value for name, value in rendezvous.items()},
    }


def _identity(job: Job, attempt: int) -> dict[str, str]:
    return {
        variables.JOB_NAME: job.name,
        variables.JOB_UID: job.uid,
        variables.RESTART_ATTEMPT: str(attempt),
        variables.RESUME: job.checkpoint.resume,
        **({} if job.checkpoint.save_on_termination else {variables.SAVE_ON_TERMINATION: "0"}),
        **({variables.ADOPT: "1"} if job.checkpoint.adopts else {}),
    }
