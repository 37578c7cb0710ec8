"""What the launcher of a pod and the operator tell each other, so that ranks can start again in the living pod.

The launcher reports the attempt of its ranks and how they are; the answer names the attempt that they have to be of.
The operator writes an attempt down before it names it. Reports are untrusted: `read_report` checks and bounds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from megatron_trainjob import shown, termination
from megatron_trainjob.exit_codes import retry_class
from megatron_trainjob.termination import TerminationRecord

RanksState = Literal["starting", "running", "failed"]
"""Of the ranks of one node: not started yet, started, or ended with a failure and none started in their place."""

Stage = Literal["processGroup", "loaded", "firstStep"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
"""What ranks pass on their way to the first step: group formed, weights and state loaded, one step done."""

CONTAINER_ENDED: Final = "CONTAINER_ENDED"
"""Reason of the failure that a launcher reports whose container was started again: its ranks ended with the former."""

REPORT_FILE: Final = "launcher-report.json"
DIRECTIVE_FILE: Final = "launcher-directive.json"
"""Their files in the folder of a pod on one machine, where no server answers."""

MIN_INTERVAL_S: Final = 0.1
MAX_INTERVAL_S: Final = 60.0
"""Between the reports of one launcher."""
MAX_REASON_CHARACTERS: Final = 128
MAX_NUMBER: Final = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class LauncherReport:
    """How the ranks of one node are.

    attempt: of these ranks. age_s: since they are in this state. failure: of the rank that failed first.
    stages_s: seconds from the start of the ranks to each stage that rank 0 has passed. memory_iteration: of the newest
    checkpoint in the memory of this node, None without one. container: how many containers
    of the pod have ended before this launcher's; the status of the pod may lag behind its reports. None: it is of a
    release that does not know that containers start again.
    """

    attempt: int
    state: RanksState
    age_s: float = 0.0
    failure: TerminationRecord | None = None
    stages_s: Mapping[Stage, float] = field(default_factory=dict)
    memory_iteration: int | None = None
    container: int | None = None

    def to_fields(self) -> dict[str, Any]:
        """The report as JSON fields."""
        failure = {} if self.failure is None else {"failure": self.failure.to_fields()}
        return {
            "attempt": self.attempt,
            "state": self.state,
            "ageSeconds": round(self.age_s, 3),
            "stageSeconds": {name: round(seconds, 3) for name, seconds in self.stages_s.items()},
            **({} if self.memory_iteration is None else {"memoryIteration": self.memory_iteration}),
            **({} if self.container is None else {"container": self.container}),
            **failure,
        }


@dataclass(frozen=True, kw_only=True)
class Directive:
    """The answer to a report.

    attempt: the one that the ranks have to be of; a higher one than theirs ends them and starts others.
    ends: a launcher whose ranks have failed exits with their code. interval_s: until the next report.
    """

    attempt: int
    ends: bool = False
    interval_s: float = 1.0

    def to_fields(self) -> dict[str, Any]:
        """The directive as JSON fields."""
        return {"attempt": self.attempt, "ends": self.ends, "intervalSeconds": self.interval_s}


def can_start_again(exit_code: int) -> bool:
    """Whether ranks that ended with this code may start again in the same pod; the others end the pod, as ever."""
    return retry_class(exit_code) == "retry"


def read_report(body: object) -> LauncherReport:
    """The report in a body. Raises ValueError for anything else."""
    if not isinstance(body, Mapping):
        raise ValueError("the body must be an object")
    state = next((each for each in get_args(RanksState) if each == body.get("state")), None)
    if state is None:
        raise ValueError(f"state: must be one of {', '.join(get_args(RanksState))}")
    failure = body.get("failure")
    if (failure is not None) != (state == "failed"):
        raise ValueError("failure: is given for the state failed, and for no other")
    return LauncherReport(
        attempt=_whole("attempt", body.get("attempt")),
        state=state,
        age_s=_seconds("ageSeconds", body.get("ageSeconds", 0.0)),
        failure=None if failure is None else _failure(failure),
        stages_s=_stages(body.get("stageSeconds") or {}),
        memory_iteration=_whole("memoryIteration", body["memoryIteration"]) if "memoryIteration" in body else None,
        container=_whole("container", body["container"]) if "container" in body else None,
    )


def read_directive(body: object) -> Directive:
    """The directive in a body. Raises ValueError for anything else."""
    if not isinstance(body, Mapping):
        raise ValueError("the answer must be an object")
    return Directive(
        attempt=_whole("attempt", body.get("attempt")),
        ends=body.get("ends") is True,
        interval_s=min(MAX_INTERVAL_S, max(MIN_INTERVAL_S, _seconds("intervalSeconds", body.get("intervalSeconds")))),
    )


def _failure(given: object) -> TerminationRecord:
    if not isinstance(given, Mapping):
        raise ValueError("failure: must be an object")
    iteration, rank = given.get(termination.ITERATION), given.get(termination.RANK)
    return TerminationRecord(
        exit_code=_whole("failure.exitCode", given.get(termination.EXIT_CODE), most=255),
        reason=_text(given, termination.REASON, MAX_REASON_CHARACTERS),
        rank=_whole("failure.rank", rank),
        iteration=None if iteration is None else _whole("failure.iteration", iteration),
        message=_text(given, termination.MESSAGE, termination.MAX_MESSAGE_CHARACTERS),
        host=_text(given, termination.HOST, termination.MAX_HOST_CHARACTERS),
        stack=_text(given, termination.STACK, termination.MAX_STACK_CHARACTERS),
        gpu_error=_text(given, termination.GPU_ERROR, termination.MAX_GPU_ERROR_CHARACTERS),
    )


def _text(given: Mapping[str, Any], name: str, most_characters: int) -> str:
    return shown.message(str(given.get(name) or ""))[:most_characters]


def _stages(given: object) -> dict[Stage, float]:
    if not isinstance(given, Mapping):
        raise ValueError("stageSeconds: must be an object")
    return {stage: _seconds(f"stageSeconds.{stage}", given[stage]) for stage in STAGES if stage in given}


def _whole(name: str, value: object, *, most: int = MAX_NUMBER) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{name}: must be a whole number from 0 to {most}")
    return value


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_NUMBER:
        raise ValueError(f"{name}: must be a number of seconds")
    return float(value)
