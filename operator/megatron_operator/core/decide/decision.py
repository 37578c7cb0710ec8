"""The possible decisions, as values. `reconcile` turns each kind into changes, `status` into conditions."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_operator.api import names
from megatron_operator.core.pod_end import ContainerKind


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an attempt ended, for status.lastFailure. `time` is seconds since the epoch.

    container: the one that ended with this exit code; empty where the pod itself was rejected or evicted.
    rank: the global rank of the trainer process that failed first; None if it left no record. host, stack: where that
    process ran, and where it was in the program, as it says.
    """

    reason: str
    message: str = ""
    pod: str = ""
    node: str = ""
    container: str = ""
    container_kind: ContainerKind = "Trainer"
    exit_code: int | None = None
    is_recorded: bool = False
    rank: int | None = None
    iteration: int | None = None
    host: str = ""
    stack: str = ""
    gpu_error: str = ""
    attempt: int = 0
    time: float = 0.0

    @property
    def place(self) -> str:
        """Where it happened, in words: the pod, its container if it is not the trainer's, rank and node if known."""
        kind = {"Trainer": "", "InitContainer": "init container", "Sidecar": "sidecar"}[self.container_kind]
        pod = f"{kind} {self.container} of pod {self.pod}" if kind else f"pod {self.pod}"
        rank = None if self.rank is None else f"rank {self.rank}"
        known = ", ".join(filter(None, (rank, self.node and f"node {self.node}")))
        return f"{pod} ({known})" if known else pod


@dataclass(frozen=True, kw_only=True)
class FailedNode:
    """A node on which the job failed: how often, when last, since when it is excluded (seconds since the epoch)."""

    name: str
    failures: int = 0
    failed_at: float = 0.0
    excluded_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Counters:
    """status.restarts without the attempt: everything that a restart has to carry over.

    in_a_row: restarts caused by admission races since the last counted restart or new checkpoint.
    checkpoint_iteration, memory_iteration: the newest checkpoint of the volume, and in the memory of the nodes, when
    the last restart was decided.
    """

    total: int = 0
    counted: int = 0
    in_a_row: int = 0
    checkpoint_iteration: int | None = None
    memory_iteration: int | None = None


@dataclass(frozen=True, kw_only=True)
class Continue:
    """Nothing to decide: create what is missing, report the observed state."""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Create nothing, delete nothing, reconcile again when something changes."""


@dataclass(frozen=True, kw_only=True)
class Undecided:
    """A pod has failed, and its cause or who lives may still become known: change and report nothing yet."""


@dataclass(frozen=True, kw_only=True)
class Suspend:
    """Stop the pods and keep everything needed to resume."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Have no pods and wait in the queue; `reason` and `message` say why (condition Admitted)."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Withdraw:
    """Delete the pods of a partial gang; the whole gang is recreated after pause_s (None: as persisted)."""

    reason: str
    message: str
    pause_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Resize:
    """Stop the pods, which save, and continue with others: more or fewer, or elsewhere; not counted as a restart."""

    message: str
    reason: str = names.RESIZED


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Persist the next attempt, delete the whole gang, start again after `delay_s`.

    in_place: the pods stay, and their launchers start the ranks of the next attempt. failed_nodes: for the status.
    """

    reason: str
    failure: Failure
    counters: Counters
    delay_s: float
    in_place: bool = False
    failed_nodes: tuple[FailedNode, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Succeed:
    """The job is done."""

    message: str
    reason: str = names.MASTER_SUCCEEDED


@dataclass(frozen=True, kw_only=True)
class Fail:
    """The job is over and did not succeed."""

    reason: str
    message: str
    failure: Failure | None = None


Decision = Continue | Wait | Undecided | Suspend | Queue | Withdraw | Resize | Restart | Succeed | Fail
