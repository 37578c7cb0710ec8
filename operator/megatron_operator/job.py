"""The job as values: what a valid manifest says, defaults of the infrastructure filled in, nothing left to decide.

`manifest.parse` makes it. Parts that are plain Kubernetes (volumes, environment, pod templates) stay plain dicts and
are never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_operator import names
from megatron_trainjob.args.tree import TrainArgs

Object = Mapping[str, Any]
Task = Literal["pt", "sft", "rlhf"]
Gang = Literal["None", "Volcano", "Coscheduling", "Native"]
RuleAction = Literal["FailJob", "Restart", "RestartIgnoreLimit"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where checkpoints go. Without claim they lie in the pod, or in a state folder on one machine."""

    claim_name: str | None = None
    claim_template: Object | None = None
    mount_path: str = "/checkpoints"
    sub_path: str = ""
    resume: Literal["Auto", "Never", "Required"] = "Auto"
    save_on_termination: bool = True
    grace_period_s: int = 120
    retain_on_delete: bool = True

    @property
    def directory(self) -> str:
        """The folder that the trainer saves to unless the arguments name another."""
        return f"{self.mount_path.rstrip('/')}/{self.sub_path}".rstrip("/")


@dataclass(frozen=True, kw_only=True)
class Rdma:
    """Network devices asked for by each pod."""

    resource: str
    count: int = 1
    ipc_lock: bool = False


@dataclass(frozen=True, kw_only=True)
class Network:
    """How the pods reach each other."""

    master_port: int = 29500
    host_network: bool = False
    rdma: Rdma | None = None
    multus_networks: tuple[str, ...] = ()
    nccl_env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Initializer:
    """Fetches a model or a data set once into a volume of the master, before the trainer starts."""

    name: str
    image: str
    command: tuple[str, ...]
    target_path: str
    storage_uri: str = ""
    env: tuple[Object, ...] = ()
    env_from: tuple[Object, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Pods that belong close together: `key` is a node label, or Volcano's highest tier."""

    key: str | None = None
    highest_tier_allowed: int | None = None
    mode: Literal["Required", "Preferred"] = "Required"


@dataclass(frozen=True, kw_only=True)
class Scheduling:
    """Who places the pods, and whether all or none."""

    gang: Gang = "None"
    min_member: int = 1
    queue: str | None = None
    priority_class_name: str | None = None
    scheduler_name: str | None = None
    schedule_timeout_s: int | None = None
    topology: Topology | None = None


@dataclass(frozen=True, kw_only=True)
class RunPolicy:
    """When a job ends that does not end by itself, and what is left of it."""

    clean_pod_policy: Literal["None", "Running", "All"] = "Running"
    ttl_s: int | None = None
    ttl_policy: Literal["DeletePods", "DeleteJob"] = "DeletePods"
    active_deadline_s: int | None = None
    startup_deadline_s: int = 1200


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The user's own answer to a failure; the first rule that matches decides."""

    action: RuleAction
    exit_codes: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FailurePolicy:
    """How often and how fast a failed gang starts again."""

    max_restarts: int = 3
    reset_after_progress: bool = True
    backoff_initial_s: int = 10
    backoff_max_s: int = 600
    hang_timeout_s: int = 1800
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One MegatronTrainJob. `given_args` are the manifest's arguments under their canonical names, as text or number."""

    name: str
    namespace: str
    uid: str
    generation: int
    labels: Mapping[str, str]
    suspend: bool
    managed_by: str
    task: Task
    args: TrainArgs
    given_args: Mapping[str, object]
    image: str
    image_pull_policy: str | None
    image_pull_secrets: tuple[Object, ...]
    command: tuple[str, ...]
    env: tuple[Object, ...]
    env_from: tuple[Object, ...]
    service_account_name: str | None
    num_nodes: int
    nproc_per_node: int
    resources: Object
    checkpoint: Checkpoint
    volumes: tuple[Object, ...]
    volume_mounts: tuple[Object, ...]
    initializers: tuple[Initializer, ...]
    shm_size: str | None
    network: Network
    pod_template: Object
    master_template: Object
    worker_template: Object
    scheduling: Scheduling
    run_policy: RunPolicy
    failure_policy: FailurePolicy

    @property
    def world_size(self) -> int:
        """Number of ranks: nodes times processes a node."""
        return self.num_nodes * self.nproc_per_node

    @property
    def kueue_queue(self) -> str | None:
        """The Kueue local queue that the job's label names, None for none."""
        return self.labels.get(names.KUEUE_QUEUE)

    @property
    def save_directory(self) -> str:
        """Where the trainer writes, as the pod sees it."""
        return str(self.given_args.get("save") or self.checkpoint.directory)
