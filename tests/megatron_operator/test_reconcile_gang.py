"""reconcile: what becomes of a job whose pods wait for a gang scheduler or a queue."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator.api import names
from megatron_operator.core import reconcile
from megatron_operator.core.observe import Gang, Seen
from megatron_operator.core.plan import Ref
from tests.support.operator.job_values import NOW, RUNNING_STATUS, START, condition, conditions, job, kinds, pod, seen


def test_a_missing_gang_scheduler_stalls_the_job_and_never_ungangs_it():
    spec = {"scheduling": {"gang": "Native"}}
    plan = reconcile.plan(job(spec), Seen(gang=Gang(served=False)), NOW)
    assert plan.create == ()
    assert conditions(plan.status)["Stalled"] == ("True", "GangSchedulerMissing")


def test_volcano_pods_are_created_once_the_queue_has_taken_the_group():
    volcano = job({"scheduling": {"gang": "Volcano", "queue": "research"}})
    first = reconcile.plan(volcano, Seen(), NOW)
    assert kinds(first) == [("ConfigMap", "tune-a0-args"), ("Service", "tune"), ("PodGroup", "tune-a0")]
    assert [event.reason for event in first.events] == ["JobAccepted"]
    queued = seen(status=first.status, gang=Gang(name="tune-a0", phase="Pending"))
    waiting = reconcile.plan(volcano, queued, NOW + 20)
    assert waiting.create == ()
    assert (waiting.status["phase"], conditions(waiting.status)["Admitted"]) == ("Queued", ("False", "WaitingForQuota"))
    admitted = replace(queued, gang=Gang(name="tune-a0", phase="Inqueue"), status=waiting.status)
    assert kinds(reconcile.plan(volcano, admitted, NOW + 30)) == [
        ("Pod", "tune-a0-master-0"),
        ("Pod", "tune-a0-worker-0"),
    ]


@pytest.mark.parametrize(
    ("group", "told"),
    [
        (Gang(name="tune-a0"), "No scheduler has looked at PodGroup tune-a0 yet"),
        (Gang(name="tune-a0", phase="Pending", message="queue resource quota insufficient"), "quota insufficient"),
    ],
)
def test_a_group_that_volcano_holds_back_or_has_not_seen_says_so_and_has_a_deadline(group, told):
    spec = {"scheduling": {"gang": "Volcano"}, "runPolicy": {"schedulingTimeoutSeconds": 60}}
    plan = reconcile.plan(job(spec), Seen(gang=group), NOW)
    admitted = next(each for each in plan.status["conditions"] if each["type"] == "Admitted")
    assert (plan.status["phase"], admitted["reason"]) == ("Queued", "WaitingForQuota")
    assert told in admitted["message"]
    late = reconcile.plan(job(spec), seen(status=plan.status, gang=group), NOW + 60)
    assert conditions(late.status)["Failed"] == ("True", "SchedulingTimeout")
    assert told in late.events[0].message


def test_pods_behind_a_kueue_gate_make_the_job_queued():
    queued = job(labels={names.KUEUE_QUEUE: "team-a"})
    pods = [pod(rank, phase="Pending", gated=True, in_queue=True, scheduled_at=None) for rank in (0, 1)]
    plan = reconcile.plan(queued, seen(*pods), NOW)
    assert (plan.status["phase"], plan.status["reason"]) == ("Queued", "WaitingForQuota")


def test_a_restarted_gang_behind_a_kueue_gate_is_queued_until_it_is_admitted():
    queued = job(labels={names.KUEUE_QUEUE: "team-a"})
    status = reconcile.plan(queued, seen(pod(0), pod(1, phase="Failed", exit_code=137)), NOW).status
    assert status["phase"] == "Restarting"
    gated = [pod(rank, attempt=1, phase="Pending", gated=True, in_queue=True) for rank in (0, 1)]
    status = reconcile.plan(queued, seen(*gated, status=status), NOW + 11).status
    assert (status["phase"], status["reason"]) == ("Queued", "WaitingForQuota")
    assert conditions(status)["Restarting"][0] == "True"
    admitted = [replace(each, gated=False) for each in gated]
    status = reconcile.plan(queued, seen(*admitted, status=status), NOW + 20).status
    assert (status["phase"], conditions(status)["Admitted"]) == ("Restarting", ("True", "QuotaReserved"))


def test_a_job_whose_pods_no_queue_took_up_says_so():
    queued = job(labels={names.KUEUE_QUEUE: "team-a"})
    status = reconcile.plan(queued, seen(pod(0, in_queue=True), pod(1)), NOW).status
    assert conditions(status)["Admitted"] == ("True", "NotQueued")
    assert "External" in status["conditions"][0]["message"]
    status = reconcile.plan(queued, seen(pod(0, in_queue=True), pod(1, in_queue=True)), NOW).status
    assert conditions(status)["Admitted"] == ("True", "QuotaReserved")


def test_groups_of_earlier_attempts_are_deleted_for_they_hold_quota():
    volcano = job({"scheduling": {"gang": "Volcano"}})
    known = seen(pod(0), pod(1), gang=Gang(name="tune-a0", phase="Running"), stale_groups=("tune-old",))
    group = Ref(api_version="scheduling.volcano.sh/v1beta1", kind="PodGroup", name="tune-old")
    assert reconcile.plan(volcano, known, NOW).delete == (group,)
    finished = {**RUNNING_STATUS, "conditions": [condition(names.SUCCEEDED)], "completionTime": START}
    over = job({"scheduling": {"gang": "Volcano"}, "runPolicy": {"ttlSecondsAfterFinished": 1}})
    plan = reconcile.plan(over, replace(known, pods=(), status=finished, config_maps=frozenset()), NOW)
    assert [ref.name for ref in plan.delete] == ["tune", "tune-old", "tune-a0"]
