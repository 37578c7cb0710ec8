"""Restart in place as the pure core decides it: when pods stay, what is written down, who is waited for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator.api import names
from megatron_operator.core import attempts, push, reconcile
from megatron_operator.core.attempts import HeardReport
from megatron_operator.core.status import describe_progress
from megatron_operator.timestamp import to_text
from megatron_trainjob.termination import TerminationRecord
from tests.support.operator.job_values import NOW, RUNNING_STATUS, beat, conditions, failed, job, pod
from tests.support.operator.launcher_values import KILLED, MASTER, PLACE, WORKER, gang, heard, restarted

LOST_PEER = TerminationRecord(exit_code=1, reason="ERROR", rank=0, iteration=12, message="connection reset")


def test_a_failed_rank_restarts_in_place_with_one_write():
    plan = reconcile.plan(job(), gang(), NOW)
    assert (plan.delete, plan.create) == ((), ())
    assert plan.status["restarts"] == {
        "total": 1,
        "counted": 1,
        "attempt": 1,
        "podAttempt": 0,
        "uncountedInARow": 0,
        "checkpointIteration": 10,
    }
    assert plan.status["phase"] == "Running"
    assert plan.status["selector"] == names.selector_text("tune", 0)
    assert conditions(plan.status)["Restarting"] == ("False", names.RESTARTED_IN_PLACE)
    assert plan.status["lastFailure"] | {"time": ""} == {
        "pod": WORKER,
        "node": "node-1",
        "container": "trainer",
        "containerKind": "Trainer",
        "exitCode": 137,
        "rank": 1,
        "reason": "signal 9",
        "message": "killed",
        "iteration": 10,
        "attempt": 0,
        "time": "",
    }
    told = plan.events[-1]
    assert (told.reason, told.message) == ("JobRestarting", "Starting attempt 1 in place.")
    after = gang(heard(attempt=1), heard(attempt=1), status=plan.status)
    following = reconcile.plan(job(), after, NOW + 1)
    assert (following.status, following.delete, following.create) == (None, (), ())


def test_host_and_stack_of_the_failed_rank_are_shown():
    bus = "GPU 3: Xid 79 (the GPU has fallen off the bus)"
    placed = replace(KILLED, host="machine-1", stack="step (train/loop.py:7)", gpu_error=bus)
    plan = reconcile.plan(job(), gang(worker=heard("failed", placed)), NOW)
    last = plan.status["lastFailure"]
    assert (last["host"], last["stack"], last["gpuError"]) == ("machine-1", "step (train/loop.py:7)", bus)
    assert f"signal 9. {bus}." in next(each.message for each in plan.events if each.reason == "PodFailed")


@pytest.mark.parametrize("reason", ["Evicted", "OutOfcpu", "OOMKilled"])
def test_a_launcher_that_speaks_for_the_kubelet_is_not_believed(reason):
    claimed = gang(worker=heard("failed", replace(KILLED, reason=reason)))
    status = reconcile.plan(job(), claimed, NOW).status
    assert (status["lastFailure"]["reason"], status["restarts"]["counted"]) == ("signal 9", 1)


def test_the_cause_goes_before_the_peer_that_was_lost():
    plan = reconcile.plan(job(), gang(heard("failed", LOST_PEER)), NOW)
    assert plan.status["lastFailure"]["pod"] == WORKER


def test_a_peer_that_was_lost_waits_for_its_cause():
    plan = reconcile.plan(job(), gang(heard("failed", LOST_PEER), heard()), NOW)
    assert plan == replace(plan, status=None, delete=(), create=(), events=())
    assert 0 < plan.requeue_s <= 3


BEFORE = {"pod": WORKER, "reason": "signal 9", "iteration": 20, "attempt": 0, "time": to_text(NOW - 11)}
IN_MEMORY = {"checkpoint": {"pvc": {"claimName": "c"}, "memory": {"intervalIterations": 5, "sizeLimit": "1Gi"}}}


@pytest.mark.parametrize(
    ("spec", "iteration", "is_at_once"),
    [(IN_MEMORY, 25, True), (IN_MEMORY, 24, False), ({}, 25, False)],
    ids=["a newer checkpoint in memory", "none since", "no memory"],
)
def test_a_checkpoint_in_memory_is_progress_too(spec, iteration, is_at_once):
    """The failure before was at step 20, and nothing has been saved to the volume since."""
    status = restarted(checkpointIteration=10) | {"lastFailure": BEFORE}
    launchers = {"master": heard(attempt=1), "worker": heard("failed", KILLED, attempt=1)}
    progress = beat(iteration, attempt=1, checkpoint_iteration=10)
    restarts = reconcile.plan(job(spec), gang(**launchers, status=status, progress=progress), NOW).status["restarts"]
    assert restarts["counted"] == (1 if is_at_once else 2)
    assert ("nextRetryTime" in restarts) == (not is_at_once)


@pytest.mark.parametrize(
    ("before", "reported", "is_at_once"),
    [(20, 25, True), (None, 5, True), (20, 20, False), (20, None, False), (20, 15, False)],
    ids=["a newer one", "the first", "the same", "an older launcher", "memory that was lost"],
)
def test_a_checkpoint_in_memory_that_a_launcher_reports_is_progress(before, reported, is_at_once):
    """Ranks of the next attempt died before any report of theirs arrived: only the launcher knows how far they came."""
    known = {} if before is None else {"memoryIteration": before}
    status = restarted(checkpointIteration=10, **known) | {"lastFailure": BEFORE}
    launchers = {"master": heard(attempt=1, memory=reported), "worker": heard("failed", KILLED, attempt=1)}
    progress = beat(20, attempt=0, checkpoint_iteration=10)
    plan = reconcile.plan(job(IN_MEMORY), gang(**launchers, status=status, progress=progress), NOW)
    assert plan.status["restarts"]["counted"] == (1 if is_at_once else 2)
    assert ("nextRetryTime" in plan.status["restarts"]) == (not is_at_once)
    assert plan.status["restarts"].get("memoryIteration") == (before if reported is None else reported)


def test_the_iteration_at_which_a_rank_failed_counts_though_no_progress_has_told_it():
    status = restarted(checkpointIteration=10) | {"lastFailure": BEFORE}
    worker = heard("failed", replace(KILLED, iteration=25), attempt=1)
    progress = beat(21, attempt=1, checkpoint_iteration=10)
    plan = reconcile.plan(job(IN_MEMORY), gang(heard(attempt=1), worker, status=status, progress=progress), NOW)
    assert plan.status["restarts"]["counted"] == 1
    assert "nextRetryTime" not in plan.status["restarts"]


OTHERWISE = {
    "switched off": (gang(), {"failurePolicy": {"inPlaceRestart": False}}),
    "a silent launcher": (gang(HeardReport(report=heard().report, at=NOW - 200)), {}),
    "an unheard launcher": (gang(launchers={WORKER: heard("failed", KILLED)}), {}),
    "a launcher of another attempt": (gang(heard(attempt=3)), {}),
    "a pod that goes": (replace(gang(), pods=(pod(0, deleting=True), pod(1))), {}),
    "a pod that ended": (replace(gang(), pods=(failed(0, 137), pod(1))), {}),
    "a long back-off": (gang(progress=beat()), {"failurePolicy": {"backoffSeconds": {"initial": 60}}}),
}


@pytest.mark.parametrize(("observed", "spec"), OTHERWISE.values(), ids=OTHERWISE)
def test_a_new_gang_is_made_where_this_cannot_work(observed, spec):
    plan = reconcile.plan(job(spec), observed, NOW)
    assert plan.delete
    assert "podAttempt" not in plan.status["restarts"]
    assert plan.status["restarts"]["attempt"] == 1


def test_ranks_that_failed_twice_without_a_step_get_a_new_gang():
    """Ranks that start from a checkpoint in memory, or of another run, have an iteration without a step."""
    spec = job({"failurePolicy": {"backoffSeconds": {"initial": 0}}})
    failure = heard("failed", KILLED, attempt=1)
    again = gang(heard(attempt=1, stages={"loaded": 1.0}), failure, status=restarted(), progress=beat(50, attempt=1))
    assert reconcile.plan(spec, again, NOW).delete
    stepped = {"loaded": 1.0, "firstStep": 2.0}
    for master in (heard(attempt=1, stages=stepped), heard("failed", LOST_PEER, attempt=1, stages=stepped)):
        plan = reconcile.plan(spec, gang(master, failure, status=restarted(), progress=beat(attempt=1)), NOW)
        assert (plan.delete, plan.status["restarts"]["attempt"], plan.status["restarts"]["podAttempt"]) == ((), 2, 0)


def test_a_new_operator_hears_all_launchers_before_it_answers_the_first():
    first = gang(launchers={WORKER: heard("failed", KILLED)}, listens_since=NOW - 1)
    plan = reconcile.plan(job(), first, NOW)
    assert (plan.status, plan.delete, plan.requeue_s) == (None, (), 2.0)
    assert reconcile.plan(job(), first, NOW + 2).delete, "the master's launcher is silent"
    both = gang(listens_since=NOW - 1)
    assert reconcile.plan(job(), both, NOW).status["restarts"]["podAttempt"] == 0
    gone = replace(first, pods=(failed(0, 137), pod(1)))
    assert reconcile.plan(job(), gone, NOW).delete, "it will not be heard"


def test_a_user_rule_and_a_used_up_limit_hold_in_place():
    rule = {"failurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": [137]}]}}
    limit = {"failurePolicy": {"maxRestarts": 0}}
    for spec, reason in ((rule, names.FAILURE_POLICY), (limit, names.MAX_RESTARTS_EXCEEDED)):
        plan = reconcile.plan(job(spec), gang(), NOW)
        assert conditions(plan.status)["Failed"] == ("True", reason)
        assert {each.name for each in plan.delete} == {MASTER}, "the failed pod ends by itself, which keeps its log"
        ended = replace(gang(status=plan.status), pods=(pod(0, deleting=True), pod(1)))
        told = attempts.directive(plan.status, replace(PLACE, role="worker"), heard("failed", KILLED).report, NOW, 1.0)
        assert told.ends
        after = reconcile.plan(job(spec), ended, NOW + 1)
        assert (after.delete, after.requeue_s) == ((), 119.0)
        assert {each.name for each in reconcile.plan(job(spec), ended, NOW + 120).delete} == {WORKER}, "it hangs"


def test_a_hung_gang_restarts_in_place():
    plan = reconcile.plan(job(), gang(worker=heard(), progress=beat(age_s=1800, checkpoint_iteration=5)), NOW)
    assert (plan.delete, plan.status["restarts"]["podAttempt"], plan.status["lastFailure"]["reason"]) == ((), 0, "Hung")


def test_ranks_that_are_not_started_in_time_get_a_new_gang():
    late = gang(heard(attempt=1), heard(attempt=0), status=restarted())
    assert reconcile.plan(job(), late, NOW).requeue_s == 10.0
    plan = reconcile.plan(job(), late, NOW + 20)
    assert {each.name for each in plan.delete} == {MASTER, WORKER}
    assert plan.status["restarts"] == {"total": 2, "counted": 1, "attempt": 2, "uncountedInARow": 0}
    assert plan.status["lastFailure"]["reason"] == names.NOT_STARTED_IN_PLACE
    assert conditions(plan.status)["Restarting"] == ("True", names.NOT_STARTED_IN_PLACE)
    fresh = replace(late, listens_since=NOW + 15)
    assert reconcile.plan(job(), fresh, NOW + 20).delete == (), "a new operator first listens"


STARTED = {"lastRestart": {**restarted()["lastRestart"], "ranksStartedTime": to_text(NOW - 8)}}


@pytest.mark.parametrize(
    ("status", "progress"),
    [({**restarted(), **STARTED}, None), (restarted(), beat(attempt=1))],
    ids=["by the status", "as they train"],
)
def test_ranks_that_have_started_outlive_the_silence_of_their_launchers(status, progress):
    """As after a restart of the operator without the progress server, or with one that launchers cannot reach."""
    silent = gang(status=status, progress=progress, launchers={}, listens_since=NOW + 5)
    plan = reconcile.plan(job(), silent, NOW + 1000)
    assert (plan.delete, conditions(plan.status or status)["Running"][0]) == ((), "True")


@pytest.mark.parametrize(("attempt", "is_late"), [(0, True), (1, False)], ids=["of the ranks before", "of these ranks"])
def test_a_new_operator_takes_the_progress_in_the_status_for_the_ranks_that_reported_it(attempt, is_late):
    """Ranks report until they end, also in the second of the restart and after it."""
    progress = describe_progress(beat(attempt=attempt, metrics={"loss": 2.5}))
    status = {**restarted(), "progress": {**progress, "lastUpdatedTime": restarted()["lastRestartTime"]}}
    heard_of = {"launchers": {MASTER: heard(attempt=1)}, "progress": push.remembered(status)}
    frozen = gang(status=status, **heard_of, listens_since=NOW)
    assert bool(reconcile.plan(job(), frozen, NOW + 60).delete) == is_late


def test_silence_counts_from_when_the_operator_began_to_listen():
    silent = gang(worker=heard(), progress=beat(age_s=4000), listens_since=NOW - 30)
    plan = reconcile.plan(job(), silent, NOW)
    assert (plan.delete, (plan.status or RUNNING_STATUS)["phase"], plan.requeue_s) == ((), "Running", 1770.0)
    assert reconcile.plan(job(), silent, NOW + 1770).status["lastFailure"]["reason"] == names.HUNG


def test_phases_are_reported_with_the_next_status_write():
    stages = {"processGroup": 0.5, "loaded": 2.0, "firstStep": 3.25}
    before = gang(heard("starting", attempt=1), heard("starting", attempt=1), status=restarted())
    written = reconcile.plan(job(), before, NOW - 1).status
    told = gang(heard(attempt=1, age_s=5, stages=stages), heard(attempt=1, age_s=4), status=written)
    assert reconcile.plan(job(), told, NOW).status is None, "it waits for the next write"
    plan = reconcile.plan(job(), told, NOW + 10)
    times = {name: value for name, value in plan.status["lastRestart"].items() if name.endswith("Time")}
    assert times == {
        "decidedTime": to_text(NOW - 10),
        "ranksStartedTime": "2027-01-15T07:59:56.000Z",
        "processGroupTime": "2027-01-15T07:59:55.500Z",
        "loadedTime": "2027-01-15T07:59:57.000Z",
        "firstStepTime": "2027-01-15T07:59:58.250Z",
    }


def test_suspension_and_deletion_keep_their_meaning():
    plan = reconcile.plan(job({"suspend": True}), gang(status=restarted()), NOW)
    assert {each.name for each in plan.delete} == {MASTER, WORKER}
    assert (plan.status["restarts"]["attempt"], plan.status["restarts"].get("podAttempt")) == (2, None)


def test_a_slow_rank_is_in_the_pod_that_is_there():
    slow = beat(attempt=1, slow_rank=1, slow_rank_ratio=2.0)
    plan = reconcile.plan(job(), gang(heard(attempt=1), heard(attempt=1), status=restarted(), progress=slow), NOW)
    (said,) = (each for each in plan.status["conditions"] if each["type"] == names.SLOW_RANK)
    assert f"(pod {WORKER}, node node-1)" in said["message"]
