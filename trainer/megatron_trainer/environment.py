"""The environment variables of a pod and a rank, as set by the operator, read once into a frozen value.

The launcher of a pod has the node's variables; each rank that it starts also has its own rank.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from megatron_trainjob import environment as names
from megatron_trainjob import termination
from megatron_trainjob.args.pixels import UNREAD, VARIABLES
from megatron_trainjob.environment import DEVICES, RANK_STARTS, RESUMES, RankStart, Resume

_ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}
"""Variables from which torch reads GPU memory settings; a value set by the user takes precedence."""

COLLECTIVES_REMEMBERED = "2000"
"""Of each rank, by torch, which writes them to a file when one times out (only NCCL)."""
FLIGHT_RECORDER_FILE = "TORCH_FR_DUMP_TEMP_FILE"
"""Path of that file, up to the number of the rank; in the save folder unless the user names another."""
FORMER_NAMES = {
    "TORCH_FR_BUFFER_SIZE": "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "TORCH_FR_DUMP_ON_TIMEOUT": "TORCH_NCCL_DUMP_ON_TIMEOUT",
    FLIGHT_RECORDER_FILE: "TORCH_NCCL_DEBUG_INFO_TEMP_FILE",
}
"""Torch reads these too, but where both are set only the new one."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Rank and settings from the operator; the defaults fit a single process without an operator.

    variables: all of them, for reports with their own settings (push address, Weights & Biases).
    """

    num_nodes: int = 1
    node_rank: int = 0
    processes_per_node: str = "auto"
    master_address: str = "127.0.0.1"
    master_port: int = names.DEFAULT_MASTER_PORT
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    job_name: str = "megatron"
    job_uid: str = ""
    attempt: int = 0
    resume: Resume = "Never"
    save_on_termination: bool = True
    adopts: bool = False
    memory_folder: Path | None = None
    memory_interval: int = 1
    memory_limit_bytes: int | None = None
    progress_file: Path | None = None
    termination_log: Path = Path(termination.LOG)
    failure_file: Path | None = None
    stages_file: Path | None = None
    device: str | None = None
    rank_start: RankStart = "fork"
    launcher_patience_s: float = names.DEFAULT_LAUNCHER_PATIENCE_S
    attempt_file: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


def read(variables: Mapping[str, str] | None = None) -> Environment:
    """The environment of this process (or of the given variables).

    Raises:
        ValueError: a value is not a number, or not one of those that its variable can have.
    """
    env = os.environ if variables is None else variables
    progress, failure, stages = (env.get(n) for n in (names.PROGRESS_FILE, names.FAILURE_FILE, names.STAGES_FILE))
    memory, noted = env.get(names.MEMORY_FOLDER), env.get(names.ATTEMPT_FILE)
    return Environment(
        num_nodes=_number(env, names.NUM_NODES, 1),
        node_rank=_number(env, names.NODE_RANK, 0),
        processes_per_node=env.get(names.PROCESSES_PER_NODE, "auto"),
        master_address=env.get(names.MASTER_ADDRESS, "127.0.0.1"),
        master_port=_number(env, names.MASTER_PORT, names.DEFAULT_MASTER_PORT),
        rank=_number(env, names.RANK, 0),
        local_rank=_number(env, names.LOCAL_RANK, 0),
        world_size=_number(env, names.WORLD_SIZE, 1),
        job_name=env.get(names.JOB_NAME, "megatron"),
        job_uid=env.get(names.JOB_UID, ""),
        attempt=_number(env, names.RESTART_ATTEMPT, 0),
        resume=_chosen(names.RESUME, env.get(names.RESUME, "Never"), RESUMES),
        save_on_termination=env.get(names.SAVE_ON_TERMINATION, "1") == "1",
        adopts=env.get(names.ADOPT, "0") == "1",
        memory_folder=Path(memory) if memory else None,
        memory_interval=max(1, _number(env, names.MEMORY_INTERVAL, 1)),
        memory_limit_bytes=_number(env, names.MEMORY_LIMIT, 0) or None,
        progress_file=Path(progress) if progress else None,
        termination_log=Path(env.get(names.TERMINATION_LOG, termination.LOG)),
        failure_file=Path(failure) if failure else None,
        stages_file=Path(stages) if stages else None,
        device=_chosen(names.DEVICE, env[names.DEVICE], DEVICES) if env.get(names.DEVICE) else None,
        rank_start=_chosen(names.RANK_START, env.get(names.RANK_START) or _rank_start(env), RANK_STARTS),
        launcher_patience_s=_number(env, names.LAUNCHER_PATIENCE_S, int(names.DEFAULT_LAUNCHER_PATIENCE_S)),
        attempt_file=Path(noted) if noted else None,
        variables=dict(env),
    )


def for_rank(
    environment: Environment, local_rank: int, processes_per_node: int, attempt: int | None = None
) -> dict[str, str]:
    """All variables of one rank's process: those of this process, plus its rank.

    attempt: of ranks that start again in a pod that was made for an earlier one.
    """
    attempt = environment.attempt if attempt is None else attempt
    rank = environment.node_rank * processes_per_node + local_rank
    return {
        **os.environ,
        names.RANK: str(rank),
        names.LOCAL_RANK: str(local_rank),
        names.WORLD_SIZE: str(environment.num_nodes * processes_per_node),
        names.LOCAL_WORLD_SIZE: str(processes_per_node),
        names.RESTART_ATTEMPT: str(attempt),
        **_push_url(environment, attempt),
        names.MASTER_ADDRESS: environment.master_address,
        names.MASTER_PORT: str(environment.master_port),
        "PYTHONUNBUFFERED": "1",
        # megatron-core warns at import about every missing optional library.
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),
        # Asked of the driver's management library, torch counts GPUs without initializing CUDA, which no fork survives.
        # On the CPU it stays unset: torch would then believe the count of the stand-in for torch.cuda.
        **({"PYTORCH_NVML_BASED_CUDA_CHECK": "1"} if environment.device != "cpu" and num_gpus() else {}),
        "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "false"),
        "CUDA_DEVICE_MAX_CONNECTIONS": os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "1"),
        # Rows differ in length, so blocks of equal size are rarely reused: expandable segments avoid fragmentation.
        **({} if _ALLOCATOR & os.environ.keys() else {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
        **_flight_recorder(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_threads(processes_per_node))),
    }


def become(variables: Mapping[str, str]) -> None:
    """Replaces the environment of this process, a forked rank, by these variables."""
    os.environ.clear()
    os.environ.update(variables)


def ignored_of_images(variables: Mapping[str, str] | None = None) -> list[str]:
    """A message for each variable with which other programs change images and videos, and that nothing reads here.

    Manifests may not set them; they come from the image, a ConfigMap or the shell of a local run.
    """
    env = os.environ if variables is None else variables
    meant = {"ROOT_IMAGE_DIR": "image_root", **{name: f"model_kwargs: {{{of}: ...}}" for name, of in VARIABLES.items()}}
    found = [name for name in (*meant, *UNREAD) if env.get(name)]
    return [
        f"nothing reads the variable {name} ({env[name]})" + (f"; use {meant[name]}" if name in meant else "")
        for name in found
    ]


def _push_url(environment: Environment, attempt: int) -> dict[str, str]:
    """Where a rank pushes its progress; the operator tells attempts in one pod apart by the query."""
    url = environment.variables.get(names.PUSH_URL)
    is_ours = names.LAUNCHER_URL in environment.variables
    return {names.PUSH_URL: f"{url}?{names.PUSH_ATTEMPT}={attempt}"} if url and is_ours else {}


def place_flight_recorder(save: Path) -> None:
    """Makes torch write the collectives of each rank to {save}/nccl_trace/rank_N when one times out."""
    folder = save / "nccl_trace"
    if named := _set_by_user(FLIGHT_RECORDER_FILE):
        os.environ[FLIGHT_RECORDER_FILE] = named
    else:
        with contextlib.suppress(OSError):  # a folder that cannot be written to is reported when it is claimed
            folder.mkdir(parents=True, exist_ok=True)
        os.environ[FLIGHT_RECORDER_FILE] = f"{folder}/rank_"


def _flight_recorder() -> dict[str, str]:
    """Torch dumps on a timeout unless a variable says otherwise; torch 2.11 hears that only by the former name."""
    dumps = "TORCH_FR_DUMP_ON_TIMEOUT"
    said = _set_by_user(dumps)
    return {
        "TORCH_FR_BUFFER_SIZE": _set_by_user("TORCH_FR_BUFFER_SIZE") or COLLECTIVES_REMEMBERED,
        **({dumps: said, FORMER_NAMES[dumps]: said} if said else {}),
    }


def _set_by_user(name: str) -> str | None:
    """What the user set for the flight recorder, under the present or the former name."""
    return os.environ.get(name) or os.environ.get(FORMER_NAMES[name])


def num_gpus() -> int:
    """GPUs of this machine, counted by their device files (the launcher does not import torch)."""
    return sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia*"))


def _chosen[Choice: str](name: str, text: str, choices: tuple[Choice, ...]) -> Choice:
    found = next((choice for choice in choices if choice == text), None)
    if found is None:
        raise ValueError(f"{name}: must be {', '.join(choices[:-1])} or {choices[-1]} (got {text!r})")
    return found


def _rank_start(env: Mapping[str, str]) -> RankStart:
    """Forked on the CPU, spawned on GPUs unless asked for: forking beside CUDA libraries has not been measured."""
    return "spawn" if num_gpus() and env.get(names.DEVICE) != "cpu" else "fork"


def _threads(processes_per_node: int) -> int:
    return max(1, (os.cpu_count() or 1) // processes_per_node)


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, str(default))
    try:
        return int(text)
    except ValueError as err:
        raise ValueError(f"{name}: must be a whole number (got {text!r})") from err
