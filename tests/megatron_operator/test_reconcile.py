"""reconcile: whole plans for whole situations, from a new job to a finished one. Schedulers: test_reconcile_gang.py."""

from __future__ import annotations

import cProfile
from dataclasses import replace

import pytest

from megatron_operator import timestamp
from megatron_operator.api import names
from megatron_operator.core import reconcile
from megatron_operator.core.observe import Seen
from megatron_operator.core.plan import Event, Patch, Plan, Ref
from megatron_trainjob.violation import Violation
from tests.support.operator.job_values import (
    ARGS,
    NOW,
    RUNNING_STATUS,
    START,
    beat,
    condition,
    conditions,
    failed,
    job,
    kinds,
    pod,
    raw,
    seen,
)

NO_PLACE = "Pod tune-a0-worker-0: 0/3 nodes are available"
GANG_CREATED = Event(type="Normal", reason="GangCreated", message=f"2 pods of attempt 0. {NO_PLACE}", of="attempt 0")


def ref(rank, attempt=0):
    name = names.pod_name("tune", attempt, rank)
    return Ref(api_version="v1", kind="Pod", name=name, uid=f"pod-{attempt}-{rank}")


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


def test_a_look_at_a_large_gang_is_cheap():
    """Counted in steps of Python and not in seconds: a hundred a pod, where it once were thousands."""
    size = 512
    wanted = job({"numNodes": size, "args": {**ARGS, "global_batch_size": size}})
    running = seen(*(pod(rank, ready=True, created_at=NOW) for rank in range(size)), status={})
    known = replace(running, status=reconcile.plan(wanted, running, NOW).status)
    calls = cProfile.Profile()
    assert calls.runcall(reconcile.plan, wanted, known, NOW + 1) == Plan(requeue_s=None)
    assert sum(entry.callcount for entry in calls.getstats()) < 100 * size


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


def test_a_running_job_of_which_nothing_is_new_needs_nothing():
    status = reconcile.plan(job(), seen(pod(0), pod(1)), NOW).status
    assert reconcile.plan(job(), seen(pod(0), pod(1), status=status), NOW + 3600) == Plan()


def test_the_happy_path_writes_the_status_three_times():
    """Starting, running, succeeded; pods that change their phase one by one in between write nothing."""
    stored = {}
    pods = [pod(0, phase="Pending"), pod(1, phase="Pending")]
    situations = [
        [],
        pods,
        [pod(0), pods[1]],
        [pod(0), pod(1)],
        [pod(0, phase="Succeeded", finished_at=NOW), pod(1)],
        [pod(0, phase="Succeeded", finished_at=NOW), pod(1, phase="Succeeded")],
    ]
    writes, events = 0, []
    for second, situation in enumerate(situations):
        known = seen(*situation, status=stored) if situation else Seen()
        plan = reconcile.plan(job(), known, NOW + second)
        writes += plan.status is not None
        events += [event.reason for event in plan.events]
        stored = plan.status or stored
    assert (writes, stored["phase"]) == (3, "Succeeded")
    assert events == ["JobRunning", "JobSucceeded"]


def test_a_job_of_another_manager_is_left_entirely_alone():
    foreign = job({"managedBy": names.MULTIKUEUE_MANAGER})
    assert reconcile.plan(foreign, Seen(), NOW) == Plan()
    bad = raw({"managedBy": names.MULTIKUEUE_MANAGER, "numNodes": 0})
    assert reconcile.reject(bad, (), Seen(), NOW) == Plan()


def test_an_invalid_manifest_fails_the_job_once_with_every_problem():
    violations = (
        Violation(path="spec.numNodes", value=0, message="must be at least 1"),
        Violation(path="spec.image", value=3, message="must be text"),
    )
    plan = reconcile.reject(raw(generation=2), violations, seen(pod(0), pod(1)), NOW)
    said = "spec.numNodes: must be at least 1 (got 0); spec.image: must be text (got 3)"
    assert conditions(plan.status)["Failed"] == ("True", "InvalidSpec")
    assert conditions(plan.status)["Stalled"] == ("True", "JobFailed")
    assert (plan.status["phase"], plan.status["completionTime"]) == ("Failed", "2027-01-15T08:00:00Z")
    assert (plan.create, plan.delete, plan.requeue_s) == ((), (ref(0), ref(1)), None)
    assert [(event.type, event.reason, event.message) for event in plan.events] == [("Warning", "InvalidSpec", said)]
    assert reconcile.reject(raw(generation=2), violations, seen(status=plan.status), NOW) == Plan()


def test_a_gang_that_an_older_operator_started_trains_to_its_end_under_a_manifest_refused_since():
    violations = (Violation(path="spec.env[0].name", value="MTJ_NEW", message="is set by the operator; remove it"),)
    running = seen(pod(0), pod(1), status={**RUNNING_STATUS, "replicas": 2})
    plan = reconcile.reject(raw(), violations, running, NOW)
    assert (plan.delete, plan.status["phase"]) == ((), "Running")
    assert conditions(plan.status)["Stalled"] == ("True", "InvalidSpec")
    assert reconcile.reject(raw(), violations, replace(running, status=plan.status), NOW + 9) == Plan()
    over = seen(pod(0, phase="Succeeded"), pod(1, phase="Succeeded"), status=plan.status)
    done = reconcile.reject(raw(), violations, over, NOW)
    assert (done.status["phase"], conditions(done.status)["Complete"][0]) == ("Succeeded", "True")
    assert "Stalled" not in conditions(done.status)
    assert [event.reason for event in done.events] == ["JobSucceeded"]
    lost = seen(failed(0), pod(1, phase="Succeeded"), status=plan.status)
    assert reconcile.reject(raw(), violations, lost, NOW).status["reason"] == "InvalidSpec"


@pytest.mark.parametrize(
    ("limits", "observed", "reason", "after_s"),
    [
        ({"failurePolicy": {"hangTimeoutSeconds": 60}}, {"progress": beat(age_s=0)}, "Hung", 60),
        ({"failurePolicy": {"hangTimeoutSeconds": "a minute"}}, {"progress": beat(age_s=0)}, "Hung", 1800),
        ({}, {"progress": beat(age_s=0)}, "Hung", 1800),
        ({"runPolicy": {"activeDeadlineSeconds": 50}}, {}, "DeadlineExceeded", 50),
    ],
)
def test_silence_and_the_deadline_end_a_gang_whose_manifest_is_refused(limits, observed, reason, after_s):
    violations = (Violation(path="spec.env[0].name", value="MTJ_NEW", message="is set by the operator; remove it"),)
    started = {**RUNNING_STATUS, "replicas": 2, "startTime": timestamp.to_text(NOW)}
    running = seen(pod(0), pod(1), status=started, **observed)
    early = reconcile.reject(raw(limits), violations, running, NOW + 1)
    assert (early.delete, early.status["phase"], early.requeue_s) == ((), "Running", after_s - 1)
    over = reconcile.reject(raw(limits), violations, running, NOW + after_s)
    assert (over.status["phase"], over.status["reason"]) == ("Failed", reason)
    assert over.delete == (ref(0), ref(1))
    (claim,) = [each for each in over.status["conditions"] if each["type"] == "Failed"]
    assert "spec.env[0].name" in claim["message"]


def test_what_outlived_the_end_of_a_refused_job_is_deleted_again():
    """The status is written first; the deletions after it may fail, or their operator die."""
    violations = (Violation(path="spec.image", value=3, message="must be text"),)
    spare = replace(pod(0), name=names.spare_name("tune", 0, 0), uid="spare", role=names.SPARE)
    counted = {**RUNNING_STATUS, "replicas": 2, "spares": {"desired": 1, "running": 1}}
    half = replace(seen(failed(0), pod(1), status=counted), spares=(spare,))
    ended = reconcile.reject(raw(), violations, half, NOW)
    assert ended.status["spares"] == {"desired": 1, "running": 0}
    left = replace(half, status=ended.status)
    again = reconcile.reject(raw(), violations, left, NOW + 1)
    assert (again.status, {each.name for each in again.delete}) == (None, {ref(1).name, spare.name})
    policy = {"runPolicy": {"cleanPodPolicy": "None"}}
    assert {each.name for each in reconcile.reject(raw(policy), violations, left, NOW + 1).delete} == {spare.name}


def test_a_failed_pod_ends_the_gang_whose_manifest_is_refused_though_others_wait_for_it():
    violations = (Violation(path="spec.image", value=3, message="must be text"),)
    half = seen(failed(0), pod(1), status={**RUNNING_STATUS, "replicas": 2})
    plan = reconcile.reject(raw(), violations, half, NOW)
    assert (plan.status["phase"], plan.delete) == ("Failed", (ref(1),))


def test_a_restart_writes_the_next_attempt_before_it_deletes_the_gang():
    plan = reconcile.plan(job(), seen(pod(0), failed(1, 137, reason="OOMKilled")), NOW)
    assert plan.status["restarts"] == {
        "total": 1,
        "counted": 1,
        "attempt": 1,
        "uncountedInARow": 0,
        "nextRetryTime": "2027-01-15T08:00:10Z",
    }
    assert plan.status["lastFailure"] == {
        "pod": "tune-a0-worker-0",
        "node": "node-1",
        "container": "trainer",
        "containerKind": "Trainer",
        "exitCode": 137,
        "reason": "OOMKilled",
        "attempt": 0,
        "time": "2027-01-15T07:59:55Z",
    }
    assert conditions(plan.status) == {
        "Admitted": ("True", "NotQueued"),
        "PodsReady": ("False", "PodsCreating"),
        "Running": ("False", "PodFailed"),
        "Restarting": ("True", "PodFailed"),
        "Reconciling": ("True", "PodFailed"),
    }
    assert (plan.status["phase"], plan.status["lastRestartTime"]) == ("Restarting", "2027-01-15T08:00:00Z")
    assert (plan.delete, plan.create, plan.requeue_s) == ((ref(0), ref(1)), (), 10.0)
    assert [event.reason for event in plan.events] == ["PodFailed", "JobRestarting"]


def test_a_crash_after_the_write_ahead_is_made_good():
    """The status names attempt 1, the pods of attempt 0 are still there: they are deleted, then replaced."""
    status = reconcile.plan(job(), seen(pod(0), failed(1)), NOW).status
    replay = reconcile.plan(job(), seen(pod(0), failed(1), status=status), NOW + 1)
    assert (replay.status, replay.delete, replay.create) == (None, (ref(0), ref(1)), ())
    assert replay.requeue_s == 9.0
    gone = seen(pod(0, deleting=True, grace_ends=NOW + 5), status=status)
    waiting = reconcile.plan(job(), gone, NOW + 11)
    assert (waiting.delete, waiting.create) == ((), ())
    started = reconcile.plan(job(), seen(status=status, service_selector=names.master_selector("tune", 0)), NOW + 11)
    assert kinds(started) == [("Pod", "tune-a1-master-0"), ("Pod", "tune-a1-worker-0")]
    assert started.patch == (
        Patch(
            api_version="v1", kind="Service", name="tune", body={"spec": {"selector": names.master_selector("tune", 1)}}
        ),
    )


def test_a_restarted_gang_that_runs_ends_the_restart():
    status = reconcile.plan(job(), seen(pod(0), failed(1)), NOW).status
    plan = reconcile.plan(job(), seen(pod(0, attempt=1), pod(1, attempt=1), status=status), NOW + 30)
    assert conditions(plan.status) == {
        "Admitted": ("True", "NotQueued"),
        "PodsReady": ("True", "AllPodsReady"),
        "Running": ("True", "AllPodsRunning"),
        "Restarting": ("False", "GangRunning"),
    }
    assert plan.status["phase"] == "Running"
    assert "nextRetryTime" not in plan.status["restarts"]
    assert [event.reason for event in plan.events] == ["JobRunning"]


def test_a_disruption_is_answered_without_waiting():
    plan = reconcile.plan(job(), seen(pod(0, disruption="PreemptionByScheduler"), pod(1)), NOW)
    assert (plan.requeue_s, plan.status["restarts"]["counted"], plan.status["reason"]) == (0.0, 0, "Preempted")


def test_the_master_decides_that_the_job_has_succeeded():
    done = pod(0, phase="Succeeded", finished_at=NOW - 1)
    plan = reconcile.plan(job(), seen(done, failed(1)), NOW)
    assert conditions(plan.status) == {
        "Admitted": ("True", "NotQueued"),
        "PodsReady": ("False", "JobFinished"),
        "Running": ("False", "JobFinished"),
        "Succeeded": ("True", "MasterSucceeded"),
        "Complete": ("True", "MasterSucceeded"),
    }
    assert plan.status["completionTime"] == "2027-01-15T08:00:00Z"
    assert (plan.delete, [event.message for event in plan.events]) == ((), ["Pod tune-a0-master-0 succeeded."])


def test_workers_have_a_minute_to_end_after_the_master():
    done = pod(0, phase="Succeeded", finished_at=NOW - 20)
    waiting = reconcile.plan(job(), seen(done, pod(1)), NOW)
    assert (waiting.delete, waiting.requeue_s) == ((), 40.0)
    assert waiting.status is None or waiting.status["phase"] == "Running"
    over = reconcile.plan(job(), seen(done, pod(1)), NOW + 40)
    assert (over.status["phase"], over.delete) == ("Succeeded", (ref(1),))


def test_a_worker_that_vanishes_while_the_master_has_succeeded_is_not_replaced():
    done = pod(0, phase="Succeeded", finished_at=NOW - 1)
    assert reconcile.plan(job(), seen(done), NOW).create == ()


@pytest.mark.parametrize(
    ("policy", "deleted"), [("None", ()), ("Running", (ref(1),)), ("All", (ref(0), ref(1)))], ids=str
)
def test_clean_pod_policy_holds_also_when_the_restarts_are_used_up(policy, deleted):
    spec = {"runPolicy": {"cleanPodPolicy": policy}, "failurePolicy": {"maxRestarts": 0}}
    plan = reconcile.plan(job(spec), seen(failed(0), pod(1)), NOW)
    assert conditions(plan.status)["Failed"] == ("True", "MaxRestartsExceeded")
    assert conditions(plan.status)["Stalled"] == ("True", "JobFailed")
    assert plan.status["completionTime"] == "2027-01-15T08:00:00Z"
    assert plan.delete == deleted


@pytest.mark.parametrize(("policy", "deleted"), [("None", ()), ("Running", (ref(0), ref(1)))], ids=str)
def test_a_sidecar_that_outlives_the_trainer_neither_hides_its_end_nor_holds_its_gpus(policy, deleted):
    ended = [pod(rank, phase="Succeeded", finished_at=NOW - 1, is_outlived=True) for rank in (0, 1)]
    plan = reconcile.plan(job({"runPolicy": {"cleanPodPolicy": policy}}), seen(*ended), NOW)
    assert (plan.status["phase"], plan.delete) == ("Succeeded", deleted)


def test_a_finished_job_is_only_cleaned_up():
    status = reconcile.plan(job(), seen(pod(0, phase="Succeeded", finished_at=NOW)), NOW).status
    later = {"suspend": True, "runPolicy": {"activeDeadlineSeconds": 1}}
    assert reconcile.plan(job(later), seen(failed(1), status=status), NOW + 9999) == Plan()


def test_a_finished_job_still_follows_its_generation():
    status = {**RUNNING_STATUS, "conditions": [condition(names.SUCCEEDED)], "completionTime": START}
    plan = reconcile.plan(job(generation=2), seen(status=status), NOW)
    assert plan == Plan(status={**status, "observedGeneration": 2})


def test_time_to_live_deletes_what_the_job_made_but_never_its_checkpoints():
    status = {**RUNNING_STATUS, "conditions": [condition(names.SUCCEEDED)], "completionTime": START}
    early = reconcile.plan(job({"runPolicy": {"ttlSecondsAfterFinished": 4000}}), seen(status=status), NOW)
    assert (early.delete, early.requeue_s) == ((), 400.0)
    spec = {"runPolicy": {"ttlSecondsAfterFinished": 3600}}
    plan = reconcile.plan(job(spec), seen(pod(0, phase="Succeeded"), status=status), NOW)
    assert plan.delete == (
        ref(0),
        Ref(api_version="v1", kind="ConfigMap", name="tune-a0-args"),
        Ref(api_version="v1", kind="Service", name="tune"),
    )
    assert [event.reason for event in plan.events] == ["CleanedUp"]
    nothing = seen(status=status, config_maps=frozenset(), service_selector=None)
    assert reconcile.plan(job(spec), nothing, NOW) == Plan()


def test_time_to_live_can_delete_the_job():
    status = {**RUNNING_STATUS, "conditions": [condition(names.FAILED)], "completionTime": START}
    spec = {"runPolicy": {"ttlSecondsAfterFinished": 0, "ttlPolicy": "DeleteJob"}}
    plan = reconcile.plan(job(spec), seen(status=status), NOW)
    assert plan.delete == (Ref(api_version=names.API_VERSION, kind=names.KIND, name="tune", uid="uid-1"),)


def test_suspension_stops_the_pods_and_moves_on_to_the_next_attempt():
    plan = reconcile.plan(job({"suspend": True}), seen(pod(0), pod(1)), NOW)
    assert plan.delete == (ref(0), ref(1))
    assert conditions(plan.status) == {
        "Admitted": ("False", "JobSuspended"),
        "PodsReady": ("False", "JobSuspended"),
        "Running": ("False", "JobSuspended"),
        "Suspended": ("True", "UserRequested"),
    }
    assert (plan.status["phase"], plan.status["restarts"]["attempt"]) == ("Suspended", 1)
    assert plan.status["restarts"]["total"] == 0
    assert "startTime" not in plan.status
    again = reconcile.plan(job({"suspend": True}), seen(pod(0, deleting=True), status=plan.status), NOW + 1)
    assert (again.status, again.delete, again.events) == (None, (), ())


def test_a_job_that_was_never_started_keeps_its_attempt_while_suspended():
    plan = reconcile.plan(job({"suspend": True}), Seen(), NOW)
    assert plan.status["restarts"]["attempt"] == 0
    assert plan.create == ()


def test_a_resumed_job_starts_with_its_whole_deadline():
    spec = {"runPolicy": {"activeDeadlineSeconds": 600}}
    suspended = reconcile.plan(job({"suspend": True, **spec}), seen(pod(0), pod(1)), NOW).status
    plan = reconcile.plan(job(spec), seen(status=suspended), NOW + 1000)
    assert plan.status["startTime"] == "2027-01-15T08:16:40Z"
    assert conditions(plan.status)["Suspended"] == ("False", "Resumed")
    assert kinds(plan) == [("Pod", "tune-a1-master-0"), ("Pod", "tune-a1-worker-0")]
    assert [event.reason for event in plan.events] == ["JobResumed"]
    waits = {"phase": "Pending", "node": "", "unschedulable": "0/3 nodes are available"}
    made = seen(*(pod(rank, attempt=1, **waits) for rank in (0, 1)), status=plan.status)
    following = reconcile.plan(job(spec), made, NOW + 1001)
    told = "2 pods of attempt 1. Pod tune-a1-master-0: 0/3 nodes are available"
    assert [event.message for event in following.events] == [told]
    assert reconcile.plan(job(spec), replace(made, status=following.status), NOW + 1002).events == ()


def test_the_active_deadline_fails_the_job_without_any_other_event():
    spec = {"runPolicy": {"activeDeadlineSeconds": 3600}}
    before = reconcile.plan(job(spec), seen(pod(0), pod(1)), NOW - 60)
    assert before.requeue_s == 60.0
    plan = reconcile.plan(job(spec), seen(pod(0), pod(1)), NOW)
    assert conditions(plan.status)["Failed"] == ("True", "DeadlineExceeded")
    assert plan.delete == (ref(0), ref(1))
    assert [event.reason for event in plan.events] == ["DeadlineExceeded"]


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


def test_more_nodes_after_a_suspension_make_a_larger_gang():
    suspended = reconcile.plan(job({"suspend": True}), seen(pod(0), pod(1)), NOW).status
    larger = job({"numNodes": 4}, generation=2)
    plan = reconcile.plan(larger, seen(status=suspended, config_maps=frozenset()), NOW + 60)
    assert [name for kind, name in kinds(plan) if kind == "Pod"] == list(names.replica_names("tune", 1, 4))
    assert (plan.status["observedGeneration"], plan.status["resolved"]["worldSize"]) == (2, 4)


def test_warnings_of_the_spec_are_a_condition_and_one_event():
    warned = job({"args": {**ARGS, "sequence_parallel": True}})
    created = Seen(
        pods=(pod(0), pod(1)),
        service_selector=names.master_selector("tune", 0),
        config_maps=frozenset({"tune-a0-args"}),
    )
    plan = reconcile.plan(warned, created, NOW)
    text = "spec.args.sequence_parallel: has no effect without tensor_model_parallel_size > 1 (got True)"
    condition = next(each for each in plan.status["conditions"] if each["type"] == "HasWarnings")
    assert (condition["status"], condition["reason"], condition["message"]) == ("True", "SpecWarnings", text)
    assert ("Warning", "SpecWarnings", text) in [(event.type, event.reason, event.message) for event in plan.events]
    again = reconcile.plan(warned, replace(created, status=plan.status), NOW)
    assert "SpecWarnings" not in [event.reason for event in again.events]
    following = reconcile.plan(job(), replace(created, status=plan.status), NOW)
    types = [each["type"] for each in (following.status or {"conditions": []})["conditions"]]
    assert "HasWarnings" not in types
