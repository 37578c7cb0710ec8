"""The job as values: a valid manifest with infrastructure defaults filled in.

Built by `manifest.parse`. Parts that are plain Kubernetes (volumes, environment, pod templates) stay plain
dicts and are never modified.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from megatron_operator.api import names
from megatron_operator.api.spec import Spec
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.violation import Violation

KueueMode = Literal["PodGroup", "External"]


@dataclass(frozen=True, kw_only=True)
class ProgressPush:
    """Where the pods push their progress: the server's address and its certificate authority (PEM)."""

    url: str
    authority: str


@dataclass(frozen=True, kw_only=True)
class Job(Spec):
    """One MegatronTrainJob: its spec and its identity.

    given_args: the manifest's own arguments under their canonical names, extraArgs among them. has_container_restarts:
    whether the cluster knows rules by which a container starts again in its pod.
    """

    name: str
    namespace: str
    uid: str
    generation: int
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    args: TrainArgs
    given_args: Mapping[str, object]
    warnings: tuple[Violation, ...]
    progress_push: ProgressPush | None = None
    has_container_restarts: bool = False
    kueue_mode: KueueMode = "PodGroup"

    @property
    def world_size(self) -> int:
        """Number of ranks: nodes times processes per node."""
        return self.num_nodes * self.nproc_per_node

    @property
    def restarts_containers(self) -> bool:
        """Whether a container that a fatal signal has ended starts again: only our launcher then waits for its word."""
        in_place = self.failure_policy.in_place_restart and self.progress_push is not None
        return self.has_container_restarts and in_place and not self.command

    @property
    def kueue_queue(self) -> str | None:
        """The Kueue LocalQueue in the job's label, None without one."""
        return self.labels.get(names.KUEUE_QUEUE)

    @property
    def has_pod_group(self) -> bool:
        """Whether its pods are queued in Kueue as a plain pod group."""
        return self.kueue_queue is not None and self.kueue_mode == "PodGroup"

    @property
    def has_workload(self) -> bool:
        """Whether it is queued in Kueue as a whole, by a Workload that the operator manages."""
        return self.kueue_queue is not None and self.kueue_mode == "External"

    @cached_property
    def trainer_args(self) -> Mapping[str, object]:
        """The arguments as the trainer reads them.

        Two defaults are added: `save` on the checkpoint volume, and no version folder below it,
        because a restarted gang finds its checkpoint only under a path that stays the same.
        """
        return {"save": self.checkpoint.directory, "add_version": False, **self.given_args}

    @cached_property
    def args_hash(self) -> str:
        """A short digest of them, to identify from a pod which ones it runs with."""
        return hashlib.sha256(json.dumps(self.trainer_args, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def save_directory(self) -> str:
        """The trainer's output path inside the pod."""
        return str(self.given_args.get("save") or self.checkpoint.directory)
