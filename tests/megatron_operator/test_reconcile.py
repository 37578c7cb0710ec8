"""reconcile: whole plans for a job that runs, restarts, is suspended and resumed.

Its start, its end, manifests that are refused and gang schedulers have files of their own.
"""

from __future__ import annotations

import cProfile
from dataclasses import replace

from megatron_operator.api import names
from megatron_operator.core import reconcile
from megatron_operator.core.observe import Seen
from megatron_operator.core.plan import Patch, Plan
from tests.support.operator.job_values import ARGS, NOW, conditions, failed, job, kinds, pod, raw, ref, seen


def test_a_look_at_a_large_gang_is_cheap():
    """Counted in steps of Python and not in seconds: a hundred a pod, where it once were thousands."""
    size = 512
    wanted = job({"numNodes": size, "args": {**ARGS, "global_batch_size": size}})
    running = seen(*(pod(rank, ready=True, created_at=NOW) for rank in range(size)), status={})
    known = replace(running, status=reconcile.plan(wanted, running, NOW).status)
    calls = cProfile.Profile()
    assert calls.runcall(reconcile.plan, wanted, known, NOW + 1) == Plan(requeue_s=None)
    assert sum(entry.callcount for entry in calls.getstats()) < 100 * size


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
