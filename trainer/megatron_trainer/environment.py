"""What the operator tells a pod and a rank through the environment, read once into a frozen value.

The launcher of a pod knows its node; each rank it starts also knows its own place in the world.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Resume = Literal["Auto", "Never", "Required"]
_ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}
"""Names under which torch reads settings of its GPU memory; whoever sets one has decided."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Place in the gang and the operator's wishes; the defaults fit a single process without an operator.

    variables: all of them, for reports that have settings of their own (push address, Weights & Biases).
    """

    num_nodes: int = 1
    node_rank: int = 0
    processes_per_node: str = "auto"
    master_address: str = "127.0.0.1"
    master_port: int = 29500
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    job_name: str = "megatron"
    job_uid: str = ""
    attempt: int = 0
    resume: Resume = "Never"
    save_on_termination: bool = True
    adopts: bool = False
    progress_file: Path | None = None
    termination_log: Path = Path("/dev/termination-log")
    failure_file: Path | None = None
    device: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


def read(variables: Mapping[str, str] | None = None) -> Environment:
    """The environment of this process (or of the given variables).

    Raises:
        ValueError: a number is not a number, or MTJ_RESUME is none of Auto, Never, Required.
    """
    env = os.environ if variables is None else variables
    resume = env.get("MTJ_RESUME", "Never")
    if resume not in ("Auto", "Never", "Required"):
        raise ValueError(f"MTJ_RESUME: must be Auto, Never or Required (got {resume!r})")
    progress, failure = env.get("MTJ_PROGRESS_FILE"), env.get("MTJ_FAILURE_FILE")
    return Environment(
        num_nodes=_number(env, "NNODES", 1),
        node_rank=_number(env, "NODE_RANK", 0),
        processes_per_node=env.get("NPROC_PER_NODE", "auto"),
        master_address=env.get("MASTER_ADDR", "127.0.0.1"),
        master_port=_number(env, "MASTER_PORT", 29500),
        rank=_number(env, "RANK", 0),
        local_rank=_number(env, "LOCAL_RANK", 0),
        world_size=_number(env, "WORLD_SIZE", 1),
        job_name=env.get("MTJ_JOB_NAME", "megatron"),
        job_uid=env.get("MTJ_JOB_UID", ""),
        attempt=_number(env, "MTJ_RESTART_ATTEMPT", 0),
        resume=resume,  # type: ignore[arg-type]  # checked above
        save_on_termination=env.get("MTJ_SAVE_ON_TERM", "1") == "1",
        adopts=env.get("MTJ_ADOPT", "0") == "1",
        progress_file=Path(progress) if progress else None,
        termination_log=Path(env.get("MTJ_TERMINATION_LOG", "/dev/termination-log")),
        failure_file=Path(failure) if failure else None,
        device=env.get("MTJ_DEVICE"),
        variables=dict(env),
    )


def for_rank(environment: Environment, local_rank: int, processes_per_node: int) -> dict[str, str]:
    """All variables of one rank's process: this process's own, with the rank's place in the world."""
    rank = environment.node_rank * processes_per_node + local_rank
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(environment.num_nodes * processes_per_node),
        "LOCAL_WORLD_SIZE": str(processes_per_node),
        "MASTER_ADDR": environment.master_address,
        "MASTER_PORT": str(environment.master_port),
        "PYTHONUNBUFFERED": "1",
        # megatron-core warns at import of every optional library that is not there.
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),
        "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "false"),
        "CUDA_DEVICE_MAX_CONNECTIONS": os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "1"),
        # Rows differ in length, so blocks of one size are seldom free again: segments grow instead of being lost.
        **({} if _ALLOCATOR & os.environ.keys() else {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_threads(processes_per_node))),
    }


def num_gpus() -> int:
    """GPUs of this machine, counted by their device files (the launcher does not import torch)."""
    return sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia*"))


def _threads(processes_per_node: int) -> int:
    return max(1, (os.cpu_count() or 1) // processes_per_node)


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, str(default))
    try:
        return int(text)
    except ValueError as err:
        raise ValueError(f"{name}: must be a whole number (got {text!r})") from err
