"""How a raw pod's containers have ended, and which of these ends is the pod's. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from megatron_operator.api import names
from megatron_operator.core import termination
from megatron_operator.guard import shortened, whole_number
from megatron_operator.timestamp import to_seconds
from megatron_trainjob import environment, exit_codes, launcher

Object = Mapping[str, Any]
PodPhase = Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]
ContainerKind = Literal["Trainer", "InitContainer", "Sidecar"]
MAX_REASON_CHARACTERS = 253
MAX_EXIT_CODE = 2**31 - 1
MAX_MESSAGE_CHARACTERS = 1024


@dataclass(frozen=True, kw_only=True)
class ContainerEnd:
    """How a container, or the trainer's ranks, ended; all None or empty while none has."""

    exit_code: int | None = None
    is_recorded: bool = False
    rank: int | None = None
    reason: str = ""
    message: str = ""
    iteration: int | None = None
    host: str = ""
    stack: str = ""
    gpu_error: str = ""
    finished_at: float | None = None


NO_END = ContainerEnd()


def read(spec: Object, status: Object) -> dict[str, Any]:
    """Phase, and for the container that ended the pod: name, kind, exit code, what the trainer recorded, and time."""
    container, kind = _deciding(spec, status)
    phase = _pod_phase(status)
    shown = {
        "container": shortened(container.get("name"), MAX_REASON_CHARACTERS) or names.CONTAINER,
        "container_kind": kind,
    }
    if kind == "Trainer" and phase == "Running":
        shown |= _restarted(spec, container)
        if shown["is_down"]:
            return {**shown, "phase": phase}
    end = _last_end(spec, container, status, kind)
    return {
        **shown,
        **vars(end),
        "phase": _phase(phase, container, spec, status) if kind == "Trainer" else phase,
        "is_outlived": end.exit_code is not None and phase in ("Pending", "Running"),
    }


def _restarted(spec: Object, trainer: Object) -> dict[str, Any]:
    """Whether the trainer's container is about to start again, how often it has, and how the former ended."""
    state, last = trainer.get("state") or {}, (trainer.get("lastState") or {}).get("terminated")
    ended = state.get("terminated")
    is_down = bool(ended and _restarts_after(spec, ended)) or bool(last and state.get("waiting"))
    former = ended if ended and is_down else last
    return {
        "is_down": is_down,
        "num_container_restarts": whole_number(trainer.get("restartCount"), smallest=0, largest=MAX_EXIT_CODE) or 0,
        "has_attempt_file": _has_attempt_file(spec),
        "last_end": _end_of(spec, former, {}, "Trainer") if former else None,
    }


def _restarts_after(spec: Object, terminated: Object) -> bool:
    """Whether a rule of the trainer's container says that the kubelet starts it again after this end."""
    codes = [rule.get("exitCodes") or {} for rule in _trainer(spec).get("restartPolicyRules") or ()]
    return any(each.get("operator") == "In" and terminated.get("exitCode") in each["values"] for each in codes)


def _has_attempt_file(spec: Object) -> bool:
    """Whether the trainer is our launcher, which adds to a fatal code; to any other program 201 means what it likes."""
    return any(each.get("name") == environment.ATTEMPT_FILE for each in _trainer(spec).get("env") or ())


def _trainer(spec: Object) -> Object:
    return next((each for each in spec.get("containers") or () if each["name"] == names.CONTAINER), {})


def _last_end(spec: Object, container: Object, status: Object, kind: ContainerKind) -> ContainerEnd:
    """How a container has ended for good; as the one before it, where its launcher knows only that there was one."""
    end = _end_of(spec, (container.get("state") or {}).get("terminated") or {}, status, kind)
    former = (container.get("lastState") or {}).get("terminated")
    return _end_of(spec, former, status, kind) if former and end.reason == launcher.CONTAINER_ENDED else end


def _end_of(spec: Object, terminated: Object, status: Object, kind: ContainerKind) -> ContainerEnd:
    """How a container ended. A reason of the pod itself (Evicted, NodeShutdown ...) takes precedence over its own."""
    if not (terminated or status.get("reason") or status.get("message")):
        return NO_END
    record = termination.read(terminated.get("message")) if kind == "Trainer" else termination.Record()
    exit_code = whole_number(terminated.get("exitCode"), largest=MAX_EXIT_CODE)
    if kind == "Trainer" and exit_code is not None and record.exit_code != exit_code and _has_attempt_file(spec):
        exit_code = exit_codes.of_rank(exit_code)
    of_pod, own = status.get("message"), record.message or terminated.get("message")
    message = of_pod or own if status.get("reason") else own or of_pod
    return ContainerEnd(
        exit_code=exit_code,
        is_recorded=exit_code is not None and record.exit_code == exit_code,
        rank=record.rank,
        reason=shortened(status.get("reason"), MAX_REASON_CHARACTERS) or _container_reason(terminated, record),
        message=shortened(message, MAX_MESSAGE_CHARACTERS),
        iteration=record.iteration,
        host=record.host or "",
        stack=record.stack or "",
        gpu_error=record.gpu_error or "",
        finished_at=to_seconds(terminated.get("finishedAt")),
    )


def _phase(phase: PodPhase, trainer: Object, spec: Object, status: Object) -> PodPhase:
    """The trainer's phase; the pod's own is Pending while the trainer runs but a sidecar does not."""
    state = trainer.get("state") or {}
    if ended := state.get("terminated"):
        return "Failed" if ended.get("exitCode") or _was_cut_short(ended, spec, status) else "Succeeded"
    return "Running" if phase == "Pending" and state.get("running") is not None else phase


def _was_cut_short(ended: Object, spec: Object, status: Object) -> bool:
    """Whether a code of 0 is only a program's answer to SIGTERM, because its pod was evicted or preempted meanwhile.

    Our launcher ends with it only when it is done. Another program that ended before the disruption had succeeded.
    """
    if tuple((_trainer(spec).get("command") or ())[: len(names.LAUNCHER)]) == names.LAUNCHER:
        return False
    targets = (each for each in status.get("conditions") or () if each["type"] == "DisruptionTarget")
    target = next((each for each in targets if each["status"] == "True"), None)
    if target is None:
        return status.get("phase") == "Failed" and bool(status.get("reason"))
    began, end = to_seconds(target.get("lastTransitionTime")), to_seconds(ended.get("finishedAt"))
    return began is None or end is None or end >= began


def _deciding(spec: Object, status: Object) -> tuple[Object, ContainerKind]:
    """The container that ended the pod: the trainer once it has ended, else the one whose failure failed the pod.

    A native sidecar (an init container that is always restarted) never fails its pod.
    """
    containers = {each["name"]: each for each in status.get("containerStatuses") or ()}
    trainer = containers.pop(names.CONTAINER, {})
    if status.get("phase") != "Failed" or (trainer.get("state") or {}).get("terminated"):
        return trainer, "Trainer"
    native = native_sidecars(spec)
    initial = (each for each in status.get("initContainerStatuses") or () if each["name"] not in native)
    if failed := next(filter(_has_failed, initial), None):
        return failed, "InitContainer"
    failed = next(filter(_has_failed, containers.values()), None)
    return (failed, "Sidecar") if failed else (trainer, "Trainer")


def _has_failed(container: Object) -> bool:
    terminated = (container.get("state") or {}).get("terminated") or {}
    return bool(terminated.get("exitCode"))


def _container_reason(terminated: Object, record: termination.Record) -> str:
    """The kubelet's own reason where it says more than "Error", else the trainer's."""
    reason = shortened(terminated.get("reason"), MAX_REASON_CHARACTERS)
    return record.reason or reason if reason in ("", "Error", "Completed") else reason


def _pod_phase(status: Object) -> PodPhase:
    phase: PodPhase = status.get("phase", "Pending")
    return phase if phase in get_args(PodPhase) else "Unknown"


def native_sidecars(spec: Object) -> frozenset[str]:
    """Native sidecars: init containers that are always restarted and run alongside the trainer."""
    initial = spec.get("initContainers") or ()
    return frozenset(each["name"] for each in initial if each.get("restartPolicy") == "Always")
