"""What a policy can decide, as values. `reconcile` turns each kind into changes, `status` into conditions."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_operator.api import names
from megatron_operator.core.observe import ContainerKind


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an attempt ended, for status.lastFailure. `time` is seconds since the epoch.

    container: the one that ended with this exit code; empty where the pod itself was refused or taken away.
    rank: the process of the trainer that failed first, counted over all nodes; None where it left no word.
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
    attempt: int = 0
    time: float = 0.0

    @property
    def place(self) -> str:
        """Where it happened, in words: the pod, its container when that is not the trainer, rank and node if known."""
        kind = {"Trainer": "", "InitContainer": "init container", "Sidecar": "sidecar"}[self.container_kind]
        pod = f"{kind} {self.container} of pod {self.pod}" if kind else f"pod {self.pod}"
        rank = None if self.rank is None else f"rank {self.rank}"
        known = ", ".join(filter(None, (rank, self.node and f"node {self.node}")))
        return f"{pod} ({known})" if known else pod


@dataclass(frozen=True, kw_only=True)
class Counters:
    """status.restarts but for the attempt: all that a restart has to remember.

    in_a_row: restarts since the last counted one or the last new checkpoint that admission races caused.
    checkpoint_iteration: newest checkpoint when the last restart was decided.
    """

    total: int = 0
    counted: int = 0
    in_a_row: int = 0
    checkpoint_iteration: int | None = None


@dataclass(frozen=True, kw_only=True)
class Continue:
    """Nothing happened: create what is missing, report what is there."""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Create nothing, delete nothing, reconcile again when something changes."""


@dataclass(frozen=True, kw_only=True)
class Undecided:
    """A pod has failed and its cause may still become known: change nothing, and say nothing yet."""


@dataclass(frozen=True, kw_only=True)
class Suspend:
    """Stop the pods and keep everything that a resume needs."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Have no pods and hold a place in the queue; `reason` and `message` say why (condition Admitted)."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Withdraw:
    """Take the pods of half a gang back; the whole gang comes again after pause_s (None: as written down)."""

    reason: str
    message: str
    pause_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Resize:
    """Stop the pods, which save, and continue with another number of them; not counted as a restart."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Write the next attempt down, delete the whole gang, start again after `delay_s`."""

    reason: str
    failure: Failure
    counters: Counters
    delay_s: float


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
