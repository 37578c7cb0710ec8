"""Right blame and right counts: what is no failure is not called one, and a success stays one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator import manifest
from megatron_operator.api import names
from megatron_operator.cluster.pod_ends import PodEnds
from megatron_operator.core import kubelet_reasons, reconcile, termination
from megatron_operator.core.decide import completion, failure, restart
from megatron_operator.core.plan import Ref
from megatron_operator.timestamp import to_text
from tests.support.operator.job_values import (
    NOW,
    RUNNING_STATUS,
    condition,
    conditions,
    failed,
    job,
    kinds,
    pod,
    raw,
    restarts,
    seen,
)

REASONS = sorted(kubelet_reasons.REFUSED | kubelet_reasons.DROPPED | {"OutOfcpu", "OutOfnvidia.com/gpu"})
HOUR_S = 3600.0
DONE = {"phase": "Succeeded", "exit_code": 0, "ready": False}


def with_succeeded(role, count=1):
    counts = {"desired": 1, "pending": 0, "running": 0, "succeeded": count, "failed": 0}
    selector = names.selector_text("tune", 0)
    return {**RUNNING_STATUS, "replicaStatuses": {role: counts}, "selector": selector}


@pytest.mark.parametrize("reason", REASONS)
def test_whatever_a_kubelet_refuses_or_drops_a_pod_for_is_not_the_programs_fault(reason):
    decision = restart.decide(job(), seen(pod(), failed(1, reason=reason, exit_code=None)), NOW)
    assert (decision.counters.counted, decision.counters.in_a_row) == (0, 1)


@pytest.mark.parametrize("reason", [*REASONS, "OOMKilled"])
def test_a_program_that_claims_a_kubelets_reason_for_itself_is_not_believed(reason):
    record = termination.read(f'{{"reason": "{reason}", "message": "m", "iteration": 3}}')
    assert (record.reason, record.message, record.iteration) == (None, "m", 3)


def test_two_kills_for_memory_at_an_unknown_iteration_prove_nothing():
    before = {"reason": names.OOM_KILLED, "attempt": 0}
    status = {**restarts(attempt=1, total=1, counted=1), "lastFailure": before}
    pods = [pod(attempt=1), failed(1, 137, attempt=1, reason=names.OOM_KILLED, iteration=None)]
    assert isinstance(restart.decide(job(), seen(*pods, status=status), NOW), restart.Restart)


def test_a_succeeded_worker_being_removed_is_no_failure_and_emits_an_event_first():
    removed = pod(1, **DONE, deleting=True, finished_at=NOW - 1)
    observed = seen(pod(), removed, status={**RUNNING_STATUS, "selector": names.selector_text("tune", 0)})
    assert failure.find(job(), observed, NOW) is None
    plan = reconcile.plan(job(), observed, NOW)
    assert plan.status["replicaStatuses"]["worker"]["succeeded"] == 1
    assert plan.status["restarts"]["total"] == 0


@pytest.mark.parametrize("deleted_by", [{"deleting": True}, {"disruption": "DeletionByTaintManager"}])
def test_nothing_that_happens_to_a_pod_after_its_success_is_a_failure(deleted_by):
    assert failure.find(job(), seen(pod(), pod(1, **DONE, **deleted_by)), NOW) is None


def test_a_worker_that_succeeded_and_is_gone_is_neither_missed_nor_made_again():
    observed = seen(pod(), status=with_succeeded(names.WORKER))
    plan = reconcile.plan(job(), observed, NOW)
    assert kinds(plan) == []
    assert plan.delete == ()
    later = plan.status or observed.status
    assert later["replicaStatuses"]["worker"]["succeeded"] == 1
    assert conditions(later)[names.RUNNING][0] == "True"
    ended = seen(pod(**DONE, finished_at=NOW), status=later)
    assert reconcile.plan(job(), ended, NOW).status["phase"] == "Succeeded"


def test_a_master_that_succeeded_and_is_gone_has_succeeded():
    plan = reconcile.plan(job(), seen(pod(1, **DONE, finished_at=NOW), status=with_succeeded(names.MASTER)), NOW)
    assert plan.status["phase"] == "Succeeded"


def test_a_success_of_another_attempt_explains_nothing():
    status = {**with_succeeded(names.WORKER), "restarts": {**RUNNING_STATUS["restarts"], "attempt": 1}}
    observed = seen(pod(attempt=1), status=status)
    assert completion.with_removed(job(), observed) is observed


def test_where_more_are_gone_than_have_succeeded_somebody_deleted_one():
    four = job({"numNodes": 4})
    observed = seen(pod(), status=with_succeeded(names.WORKER))
    assert failure.find(four, completion.with_removed(four, observed), NOW).reason == failure.POD_DELETED


@pytest.mark.parametrize(
    "spec", [{"suspend": True}, {"runPolicy": {"activeDeadlineSeconds": 1}}], ids=["suspended", "deadline over"]
)
def test_what_comes_right_after_the_success_does_not_undo_it(spec):
    pods = [pod(**DONE, finished_at=NOW - 1), pod(1, **DONE, finished_at=NOW - 1)]
    plan = reconcile.plan(job(spec), seen(*pods), NOW)
    assert plan.status["phase"] == "Succeeded"


def test_a_suspended_gang_whose_master_ends_well_has_not_succeeded():
    suspended = {**restarts(attempt=1), "conditions": [condition(names.SUSPENDED)]}
    plan = reconcile.plan(job({"suspend": True}), seen(pod(**DONE, deleting=True), status=suspended), NOW)
    assert (plan.status or suspended).get("phase") != "Succeeded"


@pytest.mark.parametrize("skew_s", [-HOUR_S, HOUR_S])
def test_a_nodes_clock_that_is_an_hour_off_changes_no_wait(skew_s):
    ends = PodEnds()
    running = pod(), pod(1)
    ends.corrected(running, NOW - 10)
    master = pod(**DONE, finished_at=NOW + skew_s)
    corrected = ends.corrected((master, running[1]), NOW)
    observed = seen(*corrected)
    assert completion.wake_at(job(), observed, NOW) == NOW + completion.COMPLETION_GRACE_S
    again = ends.corrected((master, running[1]), NOW + 30)
    assert [each.finished_at for each in again] == [NOW, None]


@pytest.mark.parametrize("skew_s", [-HOUR_S, HOUR_S])
def test_a_nodes_clock_that_is_an_hour_off_takes_no_blame_from_the_cause(skew_s):
    ends = PodEnds()
    ends.corrected((pod(), pod(1)), NOW - 10)
    peer = failed(0, 1, finished_at=NOW + skew_s)
    killed = failed(1, 137, finished_at=NOW - 1)
    corrected = ends.corrected((peer, killed), NOW)
    assert failure.find(job(), seen(*corrected), NOW).exit_code == 137


def test_an_end_within_a_minute_is_believed_and_one_before_the_operator_came_too():
    ends = PodEnds()
    ends.corrected((pod(),), NOW - 60)
    late = replace(pod(1), phase="Failed", exit_code=1, finished_at=NOW - HOUR_S)
    soon = replace(pod(), phase="Failed", exit_code=1, finished_at=NOW - 59)
    assert [each.finished_at for each in ends.corrected((soon, late), NOW)] == [NOW - 59, NOW - HOUR_S]


def wrong(**run_policy):
    return raw({"numNodes": 0, "runPolicy": run_policy})


def rejected_at(age_s, **run_policy):
    body = wrong(**run_policy)
    status = {"conditions": [condition(names.FAILED)], "completionTime": to_text(NOW - age_s)}
    return reconcile.reject(body, manifest.parse(body), seen(status=status), NOW)


def test_an_invalid_job_goes_after_its_time_to_live_too():
    plan = rejected_at(100, ttlSecondsAfterFinished=60, ttlPolicy="DeleteJob")
    (ref,) = plan.delete
    assert (ref.kind, ref.name) == (names.KIND, "tune")
    assert rejected_at(40, ttlSecondsAfterFinished=60).requeue_s == 20
    kept = rejected_at(100, ttlSecondsAfterFinished=60)
    assert Ref(api_version="v1", kind="ConfigMap", name="tune-a0-args") in kept.delete


@pytest.mark.parametrize("run_policy", [{}, {"ttlSecondsAfterFinished": "soon"}, {"ttlSecondsAfterFinished": -1}])
def test_an_invalid_job_whose_time_to_live_cannot_be_read_stays(run_policy):
    plan = rejected_at(1e6, **run_policy)
    assert (plan.delete, plan.requeue_s) == ((), None)


def test_a_job_made_again_waits_for_the_pods_of_the_one_before_and_says_so():
    before = pod(1, attempt=3, deleting=True, grace_ends=NOW + 30)
    plan = reconcile.plan(job(), seen(status={}, predecessors=(before,)), NOW)
    assert (kinds(plan), plan.requeue_s) == ([], 40.0)
    (ready,) = [each for each in plan.status["conditions"] if each["type"] == names.PODS_READY]
    assert "tune-a3-worker-0 of the deleted job" in ready["message"]


def test_a_pod_of_the_job_before_that_never_ends_stalls_the_job_also_where_its_node_is_lost():
    before = pod(1, attempt=3, deleting=True, grace_ends=NOW - 61)
    waiting = seen(status={}, predecessors=(before,))
    plan = reconcile.plan(job(), waiting, NOW)
    assert conditions(plan.status)["Stalled"] == ("True", "PodTerminating")
    assert "JobStalled" in {event.reason for event in plan.events}
    lost = reconcile.plan(job(), replace(waiting, status=plan.status, lost_nodes=frozenset({"node-1"})), NOW)
    assert (kinds(lost), lost.status) == ([], None)
