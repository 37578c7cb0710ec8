"""Reconciles one job: manifest, observed state and time -> plan. Holds the order of policies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from megatron_operator.api import names
from megatron_operator.core import conditions, events, status, workload_changes
from megatron_operator.core.decide import (
    backoff,
    cleanup,
    completion,
    deadline,
    elastic,
    failure,
    hang,
    held,
    in_place,
    invalid,
    late_ranks,
    node_exclusion,
    restart,
    spares,
    suspend,
    waiting,
    whole,
)
from megatron_operator.core.decide import kueue as kueue_decide
from megatron_operator.core.decide.decision import (
    Continue,
    Decision,
    Fail,
    Queue,
    Resize,
    Restart,
    Succeed,
    Suspend,
    Undecided,
    Wait,
    Withdraw,
)
from megatron_operator.core.desired import build, gang, service
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Pod, Seen
from megatron_operator.core.plan import Event, Patch, Plan, Ref
from megatron_trainjob.violation import Violation

Object = Mapping[str, Any]
Policy = Callable[[Job, Seen, float], Decision | None]

CLEANED_UP = Event(type="Normal", reason="CleanedUp", message="The time to live of the finished job has expired.")
FIRST_REPORT_S = 3.0

# The first policy that returns a decision wins.
POLICIES: tuple[Policy, ...] = (
    completion.decide,  # a success is final, whatever is requested a moment later
    suspend.decide,
    deadline.decide,
    kueue_decide.decide,
    elastic.decide,
    node_exclusion.decide,
    invalid.decide,
    whole.decide,
    restart.decide,
    late_ranks.decide,
    hang.decide,
)
WAKE_UPS = (
    failure.wake_at,
    deadline.wake_at,
    completion.wake_at,
    backoff.wake_at,
    late_ranks.wake_at,
    hang.wake_at,
    in_place.given_up_at,
    in_place.listened_at,
    node_exclusion.wake_at,
    spares.wake_at,
    kueue_decide.wake_at,
    waiting.wake_at,
)


def plan(job: Job, seen: Seen, now: float) -> Plan:
    """The plan for this job. `now` is seconds since the epoch."""
    if job.managed_by != names.MANAGER:
        return Plan()
    if completion.is_finished(seen):
        return _after_the_end(job, seen, now)
    living = completion.with_removed(job, seen)
    seen = in_place.with_failures(living, now)
    decision = next((found for policy in POLICIES if (found := policy(job, seen, now))), Continue())
    if isinstance(decision, Restart) and decision.in_place:
        return _carry_out(job, living, decision, now)
    if isinstance(decision, Undecided):
        return Plan(requeue_s=_requeue_s(job, seen, decision, now, None))
    return _carry_out(job, seen, decision, now)


def reject(manifest: Object, violations: tuple[Violation, ...], seen: Seen, now: float) -> Plan:
    """The plan for an invalid manifest: report every problem, run nothing, never retry."""
    if (manifest.get("spec") or {}).get("managedBy", names.MANAGER) != names.MANAGER:
        return Plan()
    if completion.is_finished(seen):
        return _after_a_rejection(manifest, seen, now)
    message = "; ".join(str(violation) for violation in violations)[:4096]
    generation = manifest["metadata"].get("generation", 0)
    overdue = None
    if held.trains(manifest, seen, now):
        overdue = held.decide(manifest, seen, now)
        if overdue is None:
            return _held(manifest, seen, message, now)
    claims = _claims_of_rejection(generation, seen, overdue, message)
    ended = status.ended(seen, generation, claims, now)
    return Plan(
        status=ended,
        delete=_refs(pod for pod in (*seen.pods, *seen.spares) if not pod.is_finished),
        events=events.of_changes(ended, seen.status),
    )


def _held(manifest: Object, seen: Seen, message: str, now: float) -> Plan:
    """A gang that trains on: the problem is shown, and its limits hold."""
    shown = status.held(seen, manifest["metadata"].get("generation", 0), names.INVALID_SPEC, message, now)
    event = Event(type="Warning", reason=names.INVALID_SPEC, message=message[:1024])
    ends = held.wake_at(manifest, seen)
    requeue_s = None if ends is None else max(ends - now, 0.0)
    is_new = shown != seen.status
    return Plan(status=shown if is_new else None, events=(event,) if is_new else (), requeue_s=requeue_s)


def _claims_of_rejection(generation: int, seen: Seen, overdue: Fail | None, message: str) -> conditions.Claims:
    if overdue is not None:
        return conditions.failed(seen, overdue.reason, f"{overdue.message} {message}"[:4096])
    if seen.status.get("observedGeneration") == generation and _all_succeeded(seen):
        done = Succeed(reason=names.ALL_SUCCEEDED, message=f"All {len(seen.current)} pods succeeded.")
        return conditions.succeeded(seen, done)
    return conditions.failed(seen, names.INVALID_SPEC, message)


def _all_succeeded(seen: Seen) -> bool:
    """Whether the whole gang, as the status counts it, has trained to its end."""
    done = [pod for pod in seen.current if pod.phase == "Succeeded"]
    return bool(done) and len(done) == seen.status.get("replicas")


def _carry_out(job: Job, seen: Seen, decision: Decision, now: float) -> Plan:
    changes, queued = _changes(job, seen, decision, now), workload_changes.changes(job, seen, decision, now)
    plan = Plan(
        delete=(*changes.delete, *_groups(job, seen.stale_groups), *queued.delete),
        patch=(*_relabeled(job, seen), *changes.patch, *queued.patch),
        create=(*queued.create, *changes.create),
    )
    if _is_first_reconcile(seen, changes):
        return replace(plan, requeue_s=_requeue_s(job, seen, decision, now, None))
    if report_in_s := _first_report_in_s(job, seen, decision, now):
        return replace(plan, requeue_s=report_in_s)
    return _reported(job, seen, decision, now, plan)


def _reported(job: Job, seen: Seen, decision: Decision, now: float, plan: Plan) -> Plan:
    """The plan with the status and events that are due."""
    new = status.compute(job, seen, decision, now)
    written, write_in_s = status.changed(new, seen.status, now, status.settled_at(seen, now))
    if write_in_s is not None and completion.is_being_removed(seen) and status.tells_of_success(new, seen.status):
        written, write_in_s = new, None
    after = seen if written is None else replace(seen, status=written)  # deadlines count from its times
    return replace(
        plan,
        status=written,
        events=events.of_decision(job, seen, decision, new, creates_pods=_creates_pods(plan)),
        requeue_s=_requeue_s(job, after, decision, now, write_in_s),
    )


def _after_the_end(job: Job, seen: Seen, now: float) -> Plan:
    """A finished job is only cleaned up; its status stays but for the observed generation."""
    if cleanup.is_over(job, seen, now):
        leftovers = (*cleanup.leftovers(job, seen), *_groups(job, _all_groups(seen)), *workload_changes.leftovers(seen))
        return Plan(delete=leftovers, events=(CLEANED_UP,) if leftovers else ())
    is_stale = seen.status.get("observedGeneration") != job.generation
    seen = in_place.after_the_end(seen, now)
    moments = [at for at in (cleanup.wake_at(job, seen, now), in_place.wake_at(seen)) if at is not None]
    return Plan(
        status={**seen.status, "observedGeneration": job.generation} if is_stale else None,
        delete=_refs(cleanup.pods_to_delete(job, seen)),
        patch=workload_changes.after_the_end(job, seen, now),
        requeue_s=min((at - now for at in moments), default=None),
    )


def _after_a_rejection(manifest: Object, seen: Seen, now: float) -> Plan:
    """Cleans up by what can be read of the manifest. The end was written before the deletions: pods may be left."""
    ttl_s, policy = cleanup.readable_ttl(manifest)
    ends = cleanup.ends(seen, ttl_s)
    if ends is None or now < ends:
        seen = in_place.after_the_end(seen, now)
        moments = [at for at in (ends, in_place.wake_at(seen)) if at is not None]
        left = cleanup.readable_to_delete(manifest, seen)
        return Plan(delete=_refs(left), requeue_s=min((at - now for at in moments), default=None))
    metadata = manifest["metadata"]
    leftovers = cleanup.leftovers_of(metadata["name"], metadata["uid"], policy, seen)
    return Plan(delete=leftovers, events=(CLEANED_UP,) if leftovers else ())


def _requeue_s(job: Job, seen: Seen, decision: Decision, now: float, write_in_s: float | None) -> float | None:
    """Requeue delay until the next time-based transition; at once after a decided restart or end."""
    if isinstance(decision, Restart):
        return decision.delay_s
    if isinstance(decision, Withdraw) and decision.pause_s is not None:
        return decision.pause_s
    if isinstance(decision, Succeed | Fail):
        ends = in_place.wake_at(seen)
        return job.run_policy.ttl_s if ends is None else ends - now
    if isinstance(decision, Suspend):
        return write_in_s
    moments = [at for wake_at in WAKE_UPS if (at := wake_at(job, seen, now)) is not None]
    waits = [max(at - now, 0.0) for at in moments if at > now]
    return min([*waits, write_in_s] if write_in_s is not None else waits, default=None)


def _is_first_reconcile(seen: Seen, changes: Plan) -> bool:
    """Whether to create a new job's pods first, and write status and event in the next reconcile, which they trigger.

    That saves one write. Attempt 0 needs no record beforehand, since a job without status is at attempt 0. A
    rejection is shown at once.
    """
    return not seen.status and seen.problem is None and not seen.current and _creates_pods(changes)


def _first_report_in_s(job: Job, seen: Seen, decision: Decision, now: float) -> float | None:
    """Seconds to delay a new gang's first status, so that it can report the running pods; None: it is due.

    Anything that prevents a pod from running is shown at once. The pods' age is by the server's clock: if ours differs
    by more than the delay, there is none.
    """
    if seen.status or seen.problem or seen.gang or not isinstance(decision, Continue) or failure.missing(job, seen):
        return None
    if any(
        each.is_mislabeled for each in seen.pods
    ):  # once its labels are restored, nothing shows that they were missing
        return None
    starts = all(
        each.phase in ("Pending", "Running") and not (each.gated or each.unschedulable) for each in seen.current
    )
    if not starts or conditions.all_running(job, seen) or any(waiting.hindrances(job, seen)):
        return None
    age_s = now - max((each.created_at for each in seen.current), default=0.0)
    return FIRST_REPORT_S - age_s if 0 <= age_s < FIRST_REPORT_S else None


def _creates_pods(changes: Plan) -> bool:
    return any(created["kind"] == "Pod" for created in changes.create)


def _changes(job: Job, seen: Seen, decision: Decision, now: float) -> Plan:
    """The deletions, patches and creations for a decision."""
    match decision:
        case Restart(in_place=True):
            return Plan(delete=_refs(seen.stale))
        case Restart() | Resize():
            return Plan(delete=_refs(seen.pods))
        case Suspend() | Queue() | Withdraw():
            return Plan(delete=_refs((*seen.pods, *seen.spares)))
        case Succeed() | Fail():
            return Plan(delete=_refs(cleanup.pods_to_delete(job, seen)))
        case Wait():
            return Plan(delete=_refs(seen.stale))
    replayed = _refs(seen.stale)
    if seen.gang is not None and not seen.gang.served:
        return Plan(delete=replayed)
    if not backoff.may_start(seen, now):
        return Plan(delete=replayed)
    failed = node_exclusion.read(job, seen.status, now)
    away = node_exclusion.excluded(job.failure_policy.node_exclusion, failed)
    return Plan(
        delete=(*replayed, *_refs(spares.to_delete(job, seen, away, now))),
        patch=_service_patch(job, seen),
        create=(*build.missing(job, seen, away), *build.spares(job, seen, spares.to_create(job, seen), away)),
    )


def _service_patch(job: Job, seen: Seen) -> tuple[Patch, ...]:
    """Points the service at this attempt, so that a stuck pod of an earlier one is never resolved."""
    wanted = service.selector(job, seen.pod_attempt)
    if seen.service_selector is None or dict(seen.service_selector) == wanted:
        return ()
    body = {"spec": {"selector": wanted}}
    return (Patch(api_version="v1", kind="Service", name=names.service_name(job.name), body=body),)


def _relabeled(job: Job, seen: Seen) -> tuple[Patch, ...]:
    """Restores removed labels: no watch delivers a pod without them, and it would train unobserved."""
    places = [(pod, names.place_of(pod.name, job.name)) for pod in (*seen.pods, *seen.spares) if pod.is_mislabeled]
    return tuple(
        Patch(
            api_version="v1",
            kind="Pod",
            name=pod.name,
            body={"metadata": {"uid": pod.uid, "labels": names.place_labels(job.name, place)}},
        )
        for pod, place in places
        if place
    )


def _all_groups(seen: Seen) -> tuple[str, ...]:
    current = (seen.gang.name,) if seen.gang and seen.gang.name and not seen.gang.deleting else ()
    return (*seen.stale_groups, *current)


def _groups(job: Job, group_names: Iterable[str]) -> tuple[Ref, ...]:
    """PodGroups to delete, of the current gang scheduler's kind."""
    version = gang.API_VERSIONS.get(job.scheduling.gang, "")
    return tuple(Ref(api_version=version, kind=gang.KIND, name=name) for name in group_names if version)


def _refs(pods: Iterable[Pod]) -> tuple[Ref, ...]:
    return tuple(cleanup.pod_ref(pod) for pod in pods if not pod.deleting)
