"""What launchers of a gang of two pods say, and what is seen and stored while they restart their ranks in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_operator.api import names
from megatron_operator.core.attempts import HeardReport
from megatron_operator.core.observe import Seen
from megatron_operator.timestamp import to_text
from megatron_trainjob.launcher import LauncherReport
from megatron_trainjob.termination import TerminationRecord
from tests.support.operator.job_values import NOW, RUNNING_STATUS, beat, condition, pod, seen

PLACE = names.Place(attempt=0, role=names.MASTER, index=0)
MASTER, WORKER = names.pod_name("tune", 0, 0), names.pod_name("tune", 0, 1)
KILLED = TerminationRecord(exit_code=137, reason="signal 9", rank=1, iteration=None, message="killed")


def heard(
    state: str = "running",
    failure: TerminationRecord | None = None,
    *,
    attempt: int = 0,
    age_s: float = 1.0,
    stages: Mapping[str, float] | None = None,
    container: int | None = 0,
    memory: int | None = None,
) -> HeardReport:
    """A report that arrived now; `memory` is the iteration of its newest checkpoint in memory."""
    known = {"attempt": attempt, "state": state, "failure": failure, "age_s": age_s, "container": container}
    return HeardReport(report=LauncherReport(**known, memory_iteration=memory, stages_s=stages or {}), at=NOW)


def gang(
    master: HeardReport | None = None,
    worker: HeardReport | None = None,
    *,
    status: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Seen:
    """Two running pods whose launchers say this; unless told otherwise, the worker's that its rank was killed."""
    said = {MASTER: master or heard(), WORKER: worker or heard("failed", KILLED)}
    known = {"progress": beat(checkpoint_iteration=10), "launchers": said, **fields}
    return seen(pod(0), pod(1), status=status, **known)


def restarted(**counters: Any) -> dict[str, Any]:
    """The status after a restart in place of attempt 0, decided ten seconds ago."""
    return {
        **RUNNING_STATUS,
        "conditions": [*RUNNING_STATUS["conditions"], condition(names.RESTARTING, is_true=False)],
        "restarts": {"total": 1, "counted": 1, "attempt": 1, "podAttempt": 0, "uncountedInARow": 0, **counters},
        "lastRestartTime": to_text(NOW - 10),
        "lastRestart": {"attempt": 1, "inPlace": True, "decidedTime": to_text(NOW - 10)},
    }
