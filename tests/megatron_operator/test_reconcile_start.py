"""reconcile: how a gang starts: its objects, its first status, and what is told of it until it runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator.api import names
from megatron_operator.core import reconcile
from megatron_operator.core.observe import Seen
from megatron_operator.core.plan import Event
from tests.support.operator.job_values import NOW, conditions, job, kinds, pod, seen

NO_PLACE = "Pod tune-a0-worker-0: 0/3 nodes are available"
GANG_CREATED = Event(type="Normal", reason="GangCreated", message=f"2 pods of attempt 0. {NO_PLACE}", of="attempt 0")


def test_a_new_job_gets_its_objects_first_and_its_status_with_the_next_look():
    plan = reconcile.plan(job(), Seen(), NOW)
    assert kinds(plan) == [
        ("ConfigMap", "tune-a0-args"),
        ("Service", "tune"),
        ("Pod", "tune-a0-master-0"),
        ("Pod", "tune-a0-worker-0"),
    ]
    assert (plan.status, plan.delete, plan.patch, plan.events, plan.requeue_s) == (None, (), (), (), None)
    created = Seen(
        pods=(pod(0, phase="Pending"), pod(1, phase="Pending")),
        service_selector=names.master_selector("tune", 0),
        config_maps=frozenset({"tune-a0-args"}),
    )
    following = reconcile.plan(job(), created, NOW)
    assert (following.create, following.events) == ((), ()), "JobRunning will have the same facts"
    assert following.status == {
        "observedGeneration": 1,
        "phase": "Starting",
        "reason": "PodsPending",
        "conditions": [
            _new("Admitted", "True", "NotQueued"),
            _new("PodsReady", "False", "PodsPending"),
            _new("Running", "False", "PodsPending"),
            _new("Reconciling", "True", "PodsPending"),
        ],
        "startTime": "2027-01-15T08:00:00Z",
        "restarts": {"total": 0, "counted": 0, "attempt": 0, "uncountedInARow": 0},
        "replicas": 2,
        "replicaStatuses": {"master": _counts(desired=1, pending=1), "worker": _counts(desired=1, pending=1)},
        "resolved": {"worldSize": 2, "dataParallelSize": 2, "microBatches": 8, "nprocPerNode": 1},
        "selector": "megatrontrain.dev/job-name=tune,megatrontrain.dev/restart-attempt=0",
        "lastUpdatedTime": "2027-01-15T08:00:00Z",
    }


def _new(type_, status, reason, message=""):
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": 1,
        "lastTransitionTime": "2027-01-15T08:00:00Z",
    }


def _counts(**counts):
    return {"desired": 0, "pending": 0, "running": 0, "succeeded": 0, "failed": 0, **counts}


def test_the_first_status_of_a_whole_gang_waits_a_moment_for_its_pods_to_run():
    made = seen(*(pod(rank, phase="Pending", created_at=NOW) for rank in (0, 1)), status={})
    waits = reconcile.plan(job(), made, NOW + 1)
    assert (waits.status, waits.events, waits.requeue_s) == (None, (), 2.0)
    running = replace(made, pods=tuple(replace(each, phase="Running", ready=True) for each in made.pods))
    said = reconcile.plan(job(), running, NOW + 1)
    assert (said.status["phase"], [event.reason for event in said.events]) == ("Running", ["JobRunning"])
    late = reconcile.plan(job(), made, NOW + 3)
    assert (late.status["phase"], late.events) == ("Starting", ())
    assert reconcile.plan(job(), made, NOW - 3600).status  # its clock is not the server's


def test_labels_restored_before_the_first_status_emit_an_event():
    made = seen(*(pod(rank, phase="Pending", created_at=NOW) for rank in (0, 1)), status={})
    mislabeled = replace(made, pods=(made.pods[0], replace(made.pods[1], is_mislabeled=True)))
    plan = reconcile.plan(job(), mislabeled, NOW + 1)
    assert [patch.name for patch in plan.patch] == [made.pods[1].name]
    assert "PodRelabeled" in [event.reason for event in plan.events]


def test_a_deadline_counts_from_a_first_status_that_says_running_already():
    wanted = job({"runPolicy": {"activeDeadlineSeconds": 7}})
    running = seen(*(pod(rank, ready=True, created_at=NOW) for rank in (0, 1)), status={})
    plan = reconcile.plan(wanted, running, NOW)
    assert (plan.status["phase"], plan.requeue_s) == ("Running", 7.0)


@pytest.mark.parametrize(
    "trouble",
    [{"unschedulable": "0/3 nodes"}, {"gated": True}, {"waiting": "ErrImagePull", "scheduled_at": NOW}],
    ids=["no place", "gated", "no image"],
)
def test_what_keeps_a_new_gang_from_running_is_said_at_once(trouble):
    made = seen(pod(0, created_at=NOW), pod(1, phase="Pending", created_at=NOW, **trouble), status={})
    assert reconcile.plan(job(), made, NOW + 1).status


def test_a_half_created_gang_is_completed():
    half = Seen(
        pods=(pod(0, phase="Pending"),),
        service_selector=names.master_selector("tune", 0),
        config_maps=frozenset({"tune-a0-args"}),
    )
    plan = reconcile.plan(job(), half, NOW + 1)
    assert kinds(plan) == [("Pod", "tune-a0-worker-0")]
    assert plan.events == ()
    waits = pod(1, phase="Pending", node="", unschedulable="0/3 nodes are available")
    whole = replace(half, pods=(*half.pods, waits), status=plan.status)
    following = reconcile.plan(job(), whole, NOW + 2)
    assert following.events == (GANG_CREATED,)
    assert reconcile.plan(job(), replace(whole, status=following.status), NOW + 3).events == (), "once"


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ({"node": "", "scheduled_at": None}, "no scheduler has placed it or reported why"),
        ({"node": "n1"}, "has not started on node n1 within 60 s; its image may still be pulled"),
    ],
)
def test_a_gang_that_neither_starts_nor_says_why_is_told_of_after_a_minute(where, told):
    pods = [pod(rank, phase="Pending", created_at=NOW, **where) for rank in (0, 1)]
    first = reconcile.plan(job(), seen(*pods, status={}), NOW + 3)
    assert (first.status["phase"], first.events) == ("Starting", ())
    assert first.requeue_s <= 57.0
    early = reconcile.plan(job(), seen(*pods, status=first.status), NOW + 59)
    assert (early.status, early.events) == (None, ())
    late = reconcile.plan(job(), seen(*pods, status=first.status), NOW + 60)
    (ready,) = [each for each in late.status["conditions"] if each["type"] == "PodsReady"]
    assert ready["message"] == f"Pod tune-a0-master-0: {told}"
    assert [(event.reason, event.message) for event in late.events] == [
        ("GangCreated", f"2 pods of attempt 0. {ready['message']}")
    ]
    assert reconcile.plan(job(), seen(*pods, status=late.status), NOW + 61).events == ()


def test_a_refused_change_stalls_the_job_until_it_succeeds():
    refused = Seen(problem=("QuotaExceeded", "pods 2, limit 1"))
    plan = reconcile.plan(job(), refused, NOW + 1)
    assert conditions(plan.status)["Stalled"] == ("True", "QuotaExceeded")
    assert kinds(plan) != []
    fine = reconcile.plan(job(), seen(pod(0), pod(1), status=plan.status), NOW + 2)
    assert "Stalled" not in conditions(fine.status)


def test_a_checkpoint_claim_is_made_from_its_template_once():
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteMany"]}}
    with_claim = job({"checkpoint": {"pvc": {"template": template}}})
    plan = reconcile.plan(with_claim, Seen(), NOW)
    assert kinds(plan)[0] == ("PersistentVolumeClaim", "tune-checkpoint")
    assert "ownerReferences" not in plan.create[0]["metadata"]
    again = reconcile.plan(with_claim, Seen(claims=frozenset({"tune-checkpoint"})), NOW)
    assert kinds(again)[0] == ("ConfigMap", "tune-a0-args")
