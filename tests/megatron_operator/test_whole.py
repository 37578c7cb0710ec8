"""decide/whole: half a gang is taken back uncounted, says whose quota it met, and comes again as a whole by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator.api import names
from megatron_operator.core import reconcile
from megatron_operator.core.observe import Seen
from megatron_operator.core.plan import Plan
from megatron_operator.timestamp import to_seconds, to_text
from tests.support.operator.job_values import NOW, RUNNING_STATUS, conditions, job, kinds, pod, seen

QUOTA = ("Forbidden", 'pods "x" is forbidden: exceeded quota: gpus, requested: pods=1, used: pods=6, limited: pods=6')


def half(**fields):
    """One pod of two was let in."""
    known = {
        "pods": (pod(0),),
        "service_selector": names.master_selector("tune", 0),
        "config_maps": frozenset({"tune-a0-args"}),
        "problem": QUOTA,
    }
    return Seen(**{**known, **fields})


def message_of(plan):
    return next(each["message"] for each in plan.status["conditions"] if each["type"] == "Stalled")


def test_the_pods_of_half_a_gang_are_taken_back_uncounted_with_the_quotas_name_and_numbers():
    plan = reconcile.plan(job(), half(), NOW)
    assert ([ref.name for ref in plan.delete], plan.create) == (["tune-a0-master-0"], ())
    assert conditions(plan.status)["Stalled"] == ("True", "QuotaExceeded")
    assert message_of(plan).startswith("Only 1 of 2 pods were accepted;")
    assert message_of(plan).endswith(QUOTA[1])
    assert plan.status["waiting"] == {"refusedSince": to_text(NOW)}
    assert (plan.status["restarts"]["total"], plan.status["restarts"]["attempt"]) == (0, 0)
    assert plan.status["restarts"]["nextRetryTime"] == to_text(NOW + 5)
    assert ([event.reason for event in plan.events], plan.requeue_s) == (["JobStalled"], 5.0)


def test_a_quota_that_lets_in_no_pod_at_all_has_the_same_name():
    plan = reconcile.plan(job(), half(pods=()), NOW)
    assert conditions(plan.status)["Stalled"] == ("True", "QuotaExceeded")
    assert message_of(plan) == QUOTA[1]
    assert [kind for kind, _ in kinds(plan)] == ["Pod", "Pod"]


def test_nothing_is_made_until_all_are_gone_and_the_pause_is_over():
    stored = reconcile.plan(job(), half(), NOW).status
    ending = half(status=stored, problem=None, pods=(pod(0, deleting=True),))
    assert reconcile.plan(job(), ending, NOW + 60) == Plan()
    gone = replace(ending, pods=())
    early = reconcile.plan(job(), gone, NOW + 1)
    assert (early.create, early.status, early.requeue_s) == ((), None, 4.0)
    again = reconcile.plan(job(), gone, NOW + 5)
    assert kinds(again) == [("Pod", "tune-a0-master-0"), ("Pod", "tune-a0-worker-0")]


def test_a_later_refusal_waits_longer_and_a_whole_gang_ends_the_state():
    stored = reconcile.plan(job(), half(), NOW).status
    again = reconcile.plan(job(), half(status=stored), NOW + 40)
    assert NOW + 45 <= to_seconds(again.status["restarts"]["nextRetryTime"]) <= NOW + 40 + 60
    assert again.status["waiting"] == stored["waiting"]
    whole = half(status=stored, problem=None, pods=(pod(0), pod(1)))
    plan = reconcile.plan(job(), whole, NOW + 90)
    assert ("waiting" in plan.status, "Stalled" in conditions(plan.status)) == (False, False)
    assert "nextRetryTime" not in plan.status["restarts"]
    assert [event.reason for event in plan.events] == ["JobRunning"]


def test_gangs_that_were_refused_at_the_same_moment_do_not_come_back_together_each_time():
    """Otherwise each takes the other's room with its half, forever."""
    meetings, now, statuses = 0, NOW, {"uid-1": {}, "uid-2": {}}
    for _ in range(12):
        refused = {uid: half(status=before) for uid, before in statuses.items()}
        statuses = {uid: reconcile.plan(job(uid=uid), each, now).status for uid, each in refused.items()}
        one, other = (to_seconds(each["restarts"]["nextRetryTime"]) for each in statuses.values())
        assert all(now + 5 <= at <= now + 61 for at in (one, other))
        meetings += abs(one - other) < 3
        now = max(one, other)
    assert meetings < 6


def test_an_operator_that_came_later_takes_the_half_back_too():
    stored = reconcile.plan(job(), half(), NOW).status
    plan = reconcile.plan(job(), half(status=stored, problem=None), NOW + 30)
    assert ([ref.name for ref in plan.delete], plan.create, plan.events) == (["tune-a0-master-0"], (), ())


def test_a_gang_that_was_whole_is_judged_by_the_failure_policy_whatever_is_refused():
    plan = reconcile.plan(job(), seen(pod(0), problem=QUOTA), NOW)
    assert plan.status["restarts"]["total"] == 1


def test_the_wait_for_quota_counts_as_a_wait_for_a_place():
    spec = {"runPolicy": {"schedulingTimeoutSeconds": 30}}
    stored = reconcile.plan(job(spec), half(), NOW).status
    assert stored["waiting"] == {"refusedSince": to_text(NOW), "schedulingSince": to_text(NOW)}
    waiting = half(status=stored, problem=None, pods=())
    assert reconcile.plan(job(spec), waiting, NOW + 1).status is None
    late = reconcile.plan(job(spec), waiting, NOW + 30)
    assert conditions(late.status)["Failed"] == ("True", "SchedulingTimeout")


def test_a_quota_without_room_for_a_single_pod_is_a_wait_for_a_place_too_and_goes_on_under_the_next_operator():
    spec = {"runPolicy": {"schedulingTimeoutSeconds": 30}}
    none = half(pods=())
    plan = reconcile.plan(job(spec), none, NOW)
    assert plan.status["waiting"] == {"schedulingSince": to_text(NOW)}
    new_operator = replace(none, status=plan.status, problem=None)
    assert reconcile.plan(job(spec), new_operator, NOW + 20).status["waiting"] == plan.status["waiting"]
    for seen_late in (new_operator, replace(none, status=plan.status)):
        late = reconcile.plan(job(spec), seen_late, NOW + 30)
        assert conditions(late.status)["Failed"] == ("True", "SchedulingTimeout")
        assert late.status["conditions"][-1]["message"].endswith(QUOTA[1])
    assert "waiting" not in reconcile.plan(job(), none, NOW).status


INVALID = (names.INVALID_OBJECT, 'Pod "tune-a0-worker-0" is invalid: spec.priority: Invalid value: 7')


def test_an_object_that_the_servers_validation_refuses_fails_a_job_that_never_had_its_gang():
    plan = reconcile.plan(job(), Seen(pods=(pod(0, phase="Pending"),), problem=INVALID), NOW)
    assert (plan.status["phase"], plan.status["reason"]) == ("Failed", names.INVALID_SPEC)
    assert INVALID[1] in plan.events[0].message
    assert [ref.name for ref in plan.delete] == ["tune-a0-master-0"]


@pytest.mark.parametrize("problem", [INVALID, ("Invalid", "ValidatingAdmissionPolicy 'x' denied request: no")])
def test_what_the_server_took_once_or_a_policy_refuses_may_be_taken_again(problem):
    status = {**RUNNING_STATUS, "restarts": {"attempt": 1 if problem is INVALID else 0, "total": 1, "counted": 1}}
    plan = reconcile.plan(job(), Seen(pods=(pod(0, attempt=1),), status=status, problem=problem), NOW)
    assert plan.status["phase"] != "Failed"
