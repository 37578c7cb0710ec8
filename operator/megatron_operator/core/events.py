"""The events of a decision: at most one for each step of a job's life that a person wants to read about.

Events about conditions are derived from the status alone: if the operator is killed between writing a status and
emitting its events, its successor emits them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from megatron_operator.api import names
from megatron_operator.core import attempts
from megatron_operator.core.decide.decision import Continue, Decision, Failure, Queue
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen
from megatron_operator.core.plan import Event
from megatron_operator.timestamp import to_seconds

Object = Mapping[str, Any]
# A successor takes over within a lease duration, or once a lost node's pod is recreated on another node.
RECENT_S = 900.0
NODE_EXCLUDED = "NodeExcluded"
# Events of new pods that no failure made necessary, by the reason of condition Restarting.
RENEWALS = {names.RESIZED: "JobResized", names.NODES_USED_AGAIN: names.NODES_USED_AGAIN}


def of_decision(job: Job, seen: Seen, decision: Decision, status: Object, *, creates_pods: bool) -> tuple[Event, ...]:
    """The events to emit for this decision, which leads to this status."""
    queued = _queued(seen, decision) if isinstance(decision, Queue) else ()
    is_accepted = isinstance(decision, Continue) and not (seen.status or seen.current or creates_pods)
    accepted = (_normal("JobAccepted", "The manifest is valid; the pods are waiting."),) if is_accepted else ()
    changes = of_changes(status, seen.status)
    return (*changes, *queued, *accepted, *of_stall(seen, status), *_relabeled(seen))


def of_changes(status: Object, before: Object) -> tuple[Event, ...]:
    """Events for conditions of a status that the previous status did not have."""
    known = {(event.reason, event.of) for _, event in _of_conditions(before)}
    return tuple(event for _, event in _of_conditions(status) if (event.reason, event.of) not in known)


def recent(status: Object, now: float) -> tuple[Event, ...]:
    """Events for recent transitions: whoever wrote them may not have got to emitting the events."""
    return tuple(event for at, event in _of_conditions(status) if at > now - RECENT_S)


def of_stall(seen: Seen, status: Object) -> tuple[Event, ...]:
    """Emitted when a job cannot proceed by itself, with the message of the refusal; a failed job says more itself."""
    stalled = next((each for each in status["conditions"] if each["type"] == names.STALLED), None)
    if stalled is None or stalled["reason"] == names.JOB_FAILED or seen.is_true(names.STALLED):
        return ()
    return (_warning("JobStalled", f"{stalled['reason']}: {stalled['message']}"[:1024]),)


def _of_conditions(status: Object) -> Iterator[tuple[float, Event]]:
    """(time of transition, event) for each condition, and each node that is excluded, that has an event."""
    by_type = {each["type"]: each for each in status.get("conditions", ())}
    for type_, emitter in EMITTERS.items():
        if type_ in by_type:
            yield from emitter(by_type[type_], status)
    for node in status.get("failedNodes") or ():
        if since := node.get("excludedTime"):
            message = (
                f"Pods of later attempts are kept away from node {node['name']}: {node['failures']} failures there."
            )
            yield to_seconds(since) or 0.0, _warning(NODE_EXCLUDED, message, f"{node['name']} {since}")


Emitted = Iterator[tuple[float, Event]]


def _restarting(condition: Object, status: Object) -> Emitted:
    """Emitted even if the new gang already runs: the last failure stays in the status."""
    is_true = condition["status"] == "True"
    restarts, last = status.get("restarts", {}), status.get("lastFailure") or {}
    attempt = restarts.get("attempt", 0)
    began, of = _restarted_at(condition, status), f"attempt {attempt}"
    if is_true and (event := RENEWALS.get(condition["reason"])):
        yield began, _normal(event, condition["message"], of)
        return
    is_cause = last.get("attempt") == attempt - 1
    if not (is_true or is_cause):
        return
    first = "JobHung" if names.HUNG in (condition["reason"], last.get("reason") if is_cause else "") else "PodFailed"
    yield began, _warning(first, _cause(last) if is_cause else condition["message"], of)
    wait_s = (to_seconds(restarts.get("nextRetryTime")) or began) - max(began, _decided_at(status))
    wait = f" in {wait_s:.0f} s" if wait_s > 0 else ""
    why = f" ({condition['reason']})" if is_true else ""
    where = " in place" if "podAttempt" in restarts else ""
    yield began, _normal("JobRestarting", f"Starting attempt {attempt}{where}{wait}{why}.", of)


def _restarted_at(condition: Object, status: Object) -> float:
    """When the latest restart was decided: the condition stays True across restarts."""
    return max(_at(condition), to_seconds(status.get("lastRestartTime")) or 0.0)


def _decided_at(status: Object) -> float:
    """When the latest restart was decided, to the millisecond; other times have whole seconds."""
    return to_seconds((status.get("lastRestart") or {}).get("decidedTime")) or 0.0


def _cause(last: Object) -> str:
    """status.lastFailure in words."""
    failed = Failure(
        reason=last["reason"],
        pod=last.get("pod", ""),
        node=last.get("node", ""),
        rank=last.get("rank"),
        container=last.get("container", ""),
        container_kind=last.get("containerKind", "Trainer"),
    )
    code = f" with exit code {last['exitCode']}" if "exitCode" in last else ""
    stack = f"Its stack: {last['stack']}." if "stack" in last else ""
    gpu = f"{last['gpuError']}." if "gpuError" in last else ""
    parts = (f"{failed.place.capitalize()} ended{code}: {failed.reason}.", gpu, last.get("message", ""), stack)
    return " ".join(filter(None, parts))


def _failed(condition: Object, status: Object) -> Emitted:
    if condition["status"] != "True":
        return
    reason, message = condition["reason"], condition["message"]
    last = status.get("lastFailure") or {}
    is_its_cause = "attempt" in last and last["attempt"] == status.get("restarts", {}).get("attempt")
    detail = last.get("message", "") if is_its_cause else ""
    if reason == names.INVALID_SPEC:
        yield _at(condition), _warning(names.INVALID_SPEC, message, _since(condition))
    else:
        emitted = names.DEADLINE_EXCEEDED if reason == names.DEADLINE_EXCEEDED else "JobFailed"
        yield _at(condition), _warning(emitted, f"{reason}: {message} {detail}".strip(), _since(condition))


def _suspended(condition: Object, status: Object) -> Emitted:
    if condition["status"] == "True":
        message = "The pods are being stopped; everything else is kept."
        yield _at(condition), _normal("JobSuspended", message, _since(condition))
    elif condition["reason"] == names.RESUMED:
        yield _at(condition), _normal("JobResumed", "The job resumes.", _since(condition))


def _created(condition: Object, status: Object) -> Emitted:
    """Emitted for pods that wait for something: of a gang that soon runs JobRunning has the facts, else JobStalled."""
    others = (names.RUNNING, names.STALLED)
    has_other = any(each["type"] in others and each["status"] == "True" for each in status["conditions"])
    if condition["reason"] == names.PODS_PENDING and condition["message"] and not has_other:
        attempt = attempts.of_pods(status)
        made = f"{status.get('replicas', 0)} pods of attempt {attempt}. {condition['message']}"
        yield _at(condition), _normal("GangCreated", made, f"attempt {attempt}")


def _running(condition: Object, status: Object) -> Emitted:
    if condition["status"] == "True":
        attempt = attempts.of_pods(status)
        message = f"All {status.get('replicas', 0)} pods of attempt {attempt} are running."
        yield _at(condition), _normal("JobRunning", message, f"attempt {attempt}, {_since(condition)}")


def _succeeded(condition: Object, status: Object) -> Emitted:
    if condition["status"] == "True":
        yield _at(condition), _normal("JobSucceeded", condition["message"], _since(condition))


def _warned(condition: Object, status: Object) -> Emitted:
    if condition["status"] == "True":
        yield _at(condition), _warning(names.SPEC_WARNINGS, condition["message"], _since(condition))


def _slow(condition: Object, status: Object) -> Emitted:
    if condition["status"] == "True":
        yield _at(condition), _warning(names.SLOW_RANK, condition["message"], _since(condition))


# In the order in which they are emitted.
EMITTERS: Mapping[str, Callable[[Object, Object], Emitted]] = {
    names.HAS_WARNINGS: _warned,
    names.SUSPENDED: _suspended,
    names.PODS_READY: _created,
    names.RUNNING: _running,
    names.SLOW_RANK: _slow,
    names.RESTARTING: _restarting,
    names.SUCCEEDED: _succeeded,
    names.FAILED: _failed,
}


def _at(condition: Object) -> float:
    return to_seconds(condition["lastTransitionTime"]) or 0.0


def _since(condition: Object) -> str:
    return str(condition["lastTransitionTime"])


def _queued(seen: Seen, decision: Queue) -> tuple[Event, ...]:
    """Emitted when the job is queued, and when it is requeued."""
    admitted = seen.condition(names.ADMITTED)
    if decision.reason == names.KUEUE_EVICTED:
        return (_warning("JobEvicted", decision.message),) if seen.current else ()
    is_new = admitted is None or admitted["status"] == "True"
    return (_normal("JobQueued", decision.message),) if is_new else ()


def _relabeled(seen: Seen) -> tuple[Event, ...]:
    pods = [pod.name for pod in seen.pods if pod.is_mislabeled]
    if not pods:
        return ()
    which = pods[0] if len(pods) == 1 else f"{pods[0]} and {len(pods) - 1} others"
    return (
        _warning("PodRelabeled", f"Labels of {which} were removed or changed by another client; they are restored."),
    )


def _normal(reason: str, message: str, of: str = "") -> Event:
    return Event(type="Normal", reason=reason, message=message[:1024], of=of)


def _warning(reason: str, message: str, of: str = "") -> Event:
    return Event(type="Warning", reason=reason, message=message[:1024], of=of)
