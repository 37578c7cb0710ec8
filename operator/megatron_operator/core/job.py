"""The job as values: what a valid manifest says, infrastructure defaults filled in, nothing left to decide.

`manifest.parse` makes it. Parts that are plain Kubernetes (volumes, environment, pod templates) stay plain
dicts and are never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_operator.api import names
from megatron_trainjob.args.field import TrainingTask
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.environment import Resume
from megatron_trainjob.violation import Violation

Object = Mapping[str, Any]
Gang = Literal["None", "Volcano", "Coscheduling", "Native"]
KueueMode = Literal["PodGroup", "External"]
RuleAction = Literal["FailJob", "Restart", "RestartIgnoreLimit"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where checkpoints go. Without a claim they lie in the pod, or in the state folder on one machine."""

    claim_name: str | None
    claim_template: Object | None
    mount_path: str
    sub_path: str
    resume: Resume
    save_on_termination: bool
    grace_period_s: int
    retain_on_delete: bool
    adopts: bool = False

    @property
    def directory(self) -> str:
        """The folder that the trainer saves to unless the arguments name another."""
        return f"{self.mount_path.rstrip('/')}/{self.sub_path}".rstrip("/")


@dataclass(frozen=True, kw_only=True)
class Rdma:
    """Network devices asked for by each pod."""

    resource: str
    count: int
    ipc_lock: bool


@dataclass(frozen=True, kw_only=True)
class Network:
    """How the pods reach each other."""

    master_port: int
    host_network: bool
    rdma: Rdma | None
    multus_networks: tuple[str, ...]
    nccl_env: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Initializer:
    """Fetches a model or a data set once into a volume of the master, before the trainer starts."""

    name: str
    image: str
    command: tuple[str, ...]
    target_path: str
    storage_uri: str
    env: tuple[Object, ...]
    env_from: tuple[Object, ...]


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Pods that belong close together: `key` is a node label, or Volcano's highest tier.

    exclusive: no other job's pods in that domain, kept by affinities between pods.
    """

    key: str | None
    highest_tier_allowed: int | None
    mode: Literal["Required", "Preferred"]
    exclusive: bool


@dataclass(frozen=True, kw_only=True)
class Scheduling:
    """Who places the pods, and whether all or none."""

    gang: Gang
    min_member: int
    queue: str | None
    priority_class_name: str | None
    scheduler_name: str | None
    schedule_timeout_s: int | None
    topology: Topology | None


@dataclass(frozen=True, kw_only=True)
class RunPolicy:
    """When a job ends that does not end by itself, and what is left of it."""

    clean_pod_policy: Literal["None", "Running", "All"]
    ttl_s: int | None
    ttl_policy: Literal["DeletePods", "DeleteJob"]
    active_deadline_s: int | None
    startup_deadline_s: int
    scheduling_timeout_s: int | None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The user's own answer to a failure; the first rule that matches decides."""

    action: RuleAction
    exit_codes: tuple[int, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FailurePolicy:
    """How often and how fast a failed gang starts again."""

    max_restarts: int
    reset_after_progress: bool
    backoff_initial_s: int
    backoff_max_s: int
    hang_timeout_s: int
    rules: tuple[Rule, ...]


@dataclass(frozen=True, kw_only=True)
class Elastic:
    """Between which numbers of nodes a running job may be resized."""

    min_nodes: int
    max_nodes: int


@dataclass(frozen=True, kw_only=True)
class ProgressPush:
    """Where the pods push their progress: the server's address and the authority (PEM) that vouches for it."""

    url: str
    authority: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """One MegatronTrainJob. `given_args` are the manifest's own arguments under their canonical names.

    copied_labels, copied_annotations: those of the job that its pods bear too.
    """

    name: str
    namespace: str
    uid: str
    generation: int
    labels: Mapping[str, str]
    copied_labels: Mapping[str, str]
    copied_annotations: Mapping[str, str]
    suspend: bool
    managed_by: str
    task: TrainingTask
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
    success_policy: Literal["Master", "All"]
    elastic: Elastic | None
    failure_policy: FailurePolicy
    warnings: tuple[Violation, ...]
    progress_push: ProgressPush | None = None
    kueue_mode: KueueMode = "PodGroup"

    @property
    def world_size(self) -> int:
        """Number of ranks: nodes times processes a node."""
        return self.num_nodes * self.nproc_per_node

    @property
    def kueue_queue(self) -> str | None:
        """The Kueue local queue that the job's label names, None for none."""
        return self.labels.get(names.KUEUE_QUEUE)

    @property
    def has_pod_group(self) -> bool:
        """Whether its pods queue in Kueue by themselves, as a plain pod group."""
        return self.kueue_queue is not None and self.kueue_mode == "PodGroup"

    @property
    def has_workload(self) -> bool:
        """Whether it queues in Kueue as a whole, by a Workload that the operator keeps."""
        return self.kueue_queue is not None and self.kueue_mode == "External"

    @property
    def save_directory(self) -> str:
        """Where the trainer writes, as the pod sees it."""
        return str(self.given_args.get("save") or self.checkpoint.directory)
