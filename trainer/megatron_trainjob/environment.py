"""Environment variables set by the operator for pods, and by a pod's launcher for its ranks: names and values.

The operator writes these variables (core/desired/environment.py), the trainer reads them (environment.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

Resume = Literal["Auto", "Never", "Required"]
"""Whether a run resumes from its own newest checkpoint: if there is one, never, or fail without one."""
RESUMES: tuple[Resume, ...] = get_args(Resume)

DEFAULT_MASTER_PORT: Final = 29500

# Rendezvous of the ranks, under the names of torchrun and PyTorchJob.
MASTER_ADDRESS: Final = "MASTER_ADDR"
MASTER_PORT: Final = "MASTER_PORT"
NUM_NODES: Final = "NNODES"
NODE_RANK: Final = "NODE_RANK"
PROCESSES_PER_NODE: Final = "NPROC_PER_NODE"
RENDEZVOUS: Final = (MASTER_ADDRESS, MASTER_PORT, NUM_NODES, NODE_RANK, PROCESSES_PER_NODE)
WORLD_SIZE: Final = "WORLD_SIZE"
RANK: Final = "RANK"
LOCAL_RANK: Final = "LOCAL_RANK"
LOCAL_WORLD_SIZE: Final = "LOCAL_WORLD_SIZE"

# Identity of the job, and how it starts and ends.
JOB_NAME: Final = "MTJ_JOB_NAME"
JOB_UID: Final = "MTJ_JOB_UID"
RESTART_ATTEMPT: Final = "MTJ_RESTART_ATTEMPT"
RESUME: Final = "MTJ_RESUME"
SAVE_ON_TERMINATION: Final = "MTJ_SAVE_ON_TERM"
ADOPT: Final = "MTJ_ADOPT"

# Checkpoints in memory: the node's folder (none without it), the steps between two, and the bytes that they may take.
MEMORY_FOLDER: Final = "MTJ_MEMORY_CHECKPOINT_FOLDER"
MEMORY_INTERVAL: Final = "MTJ_MEMORY_CHECKPOINT_INTERVAL"
MEMORY_LIMIT: Final = "MTJ_MEMORY_CHECKPOINT_BYTES"

# Paths of records, and the device; defaults are for pods, a single machine sets others.
PROGRESS_FILE: Final = "MTJ_PROGRESS_FILE"
TERMINATION_LOG: Final = "MTJ_TERMINATION_LOG"
FAILURE_FILE: Final = "MTJ_FAILURE_FILE"
DEVICE: Final = "MTJ_DEVICE"
DEVICES: Final = ("cpu", "cuda")
"""Values of MTJ_DEVICE; without one the trainer takes the GPUs if there are any."""

# Destination of progress pushes, under the names that clients of Kubeflow Trainer read.
PUSH_URL: Final = "KUBEFLOW_TRAINER_SERVER_URL"
PUSH_AUTHORITY_FILE: Final = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
PUSH_TOKEN_FILE: Final = "KUBEFLOW_TRAINER_SERVER_TOKEN"
PUSH_ATTEMPT: Final = "attempt"
"""The query parameter that says of which attempt a push speaks, where one pod has ranks of several."""

# Where the launcher reports its ranks (launcher.py): a URL, or the pod's folder on one machine. Neither: it does not.
LAUNCHER_URL: Final = "MTJ_LAUNCHER_URL"
LAUNCHER_FOLDER: Final = "MTJ_LAUNCHER_FOLDER"
LAUNCHER_PATIENCE_S: Final = "MTJ_LAUNCHER_PATIENCE_SECONDS"
"""How long a launcher whose ranks have failed waits to hear from the operator before it exits with their code."""
DEFAULT_LAUNCHER_PATIENCE_S: Final = 60.0

ATTEMPT_FILE: Final = "MTJ_ATTEMPT_FILE"
"""A file that outlives the container, where the launcher notes the attempt of its ranks. Where it is named, Kubernetes
starts a container again that a fatal signal has ended (exit_codes.RESTARTED)."""

# How the launcher starts its ranks: forked from a process that has imported everything, or each on its own.
RANK_START: Final = "MTJ_RANK_START"
RankStart = Literal["fork", "spawn"]
RANK_STARTS: tuple[RankStart, ...] = get_args(RankStart)
STAGES_FILE: Final = "MTJ_STAGES_FILE"
"""Where rank 0 notes when it passed each stage of its start (launcher.STAGES)."""


def of_torchrun(name: str) -> str:
    """The name under which torchrun itself reads the value of a rendezvous variable."""
    return f"PET_{name}"


RESERVED: Final = frozenset(
    {
        *RENDEZVOUS,
        *map(of_torchrun, RENDEZVOUS),
        WORLD_SIZE,
        RANK,
        LOCAL_RANK,
        JOB_NAME,
        JOB_UID,
        RESTART_ATTEMPT,
        RESUME,
        SAVE_ON_TERMINATION,
        ADOPT,
        MEMORY_FOLDER,
        MEMORY_INTERVAL,
        MEMORY_LIMIT,
        PROGRESS_FILE,
        TERMINATION_LOG,
        FAILURE_FILE,
        LAUNCHER_URL,
        LAUNCHER_FOLDER,
        ATTEMPT_FILE,
        STAGES_FILE,
        LOCAL_WORLD_SIZE,
    }
)
"""Names that only the operator or the launcher sets; a manifest that sets one of them is refused."""

CHOICES: Final[Mapping[str, tuple[str, ...]]] = {RANK_START: RANK_STARTS, DEVICE: DEVICES}
SETTABLE: Final = frozenset({*CHOICES, LAUNCHER_PATIENCE_S})
"""Variables of this trainer that a manifest may set."""
OURS: Final = RESERVED | SETTABLE


def looks_ours(name: str) -> bool:
    """Whether a variable is named as those of this trainer are."""
    return name.startswith("MTJ_")


def problem(name: str, text: str) -> str:
    """What is wrong with this value of a variable, "" if nothing is or the variable is none of ours."""
    if text and name in CHOICES and text not in CHOICES[name]:
        return f"must be {' or '.join(CHOICES[name])}"
    if name == LAUNCHER_PATIENCE_S and not (text.isascii() and text.isdecimal()):
        return "must be a whole number of seconds"
    return ""
