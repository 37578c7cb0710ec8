"""The job as values: what a valid manifest says, infrastructure defaults filled in, nothing left to decide.

`manifest.parse` makes it. Parts that are plain Kubernetes (volumes, environment, pod templates) stay plain
dicts and are never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_operator.api import names
from megatron_operator.api.values import (
    Checkpoint,
    Elastic,
    FailurePolicy,
    Initializer,
    Network,
    RunPolicy,
    Scheduling,
    SuccessPolicy,
)
from megatron_trainjob.args.field import TrainingTask
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.violation import Violation

Object = Mapping[str, Any]
KueueMode = Literal["PodGroup", "External"]


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
    success_policy: SuccessPolicy
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
