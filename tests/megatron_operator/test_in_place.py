"""Restart in place as the pure core decides it: when pods stay, what is written down, what launchers are told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator import clock
from megatron_operator.api import names
from megatron_operator.core import attempts, reconcile
from megatron_operator.core.attempts import HeardReport
from megatron_operator.core.pod_end import ContainerEnd
from megatron_operator.process.controller import Controller, Jobs
from megatron_operator.timestamp import to_text
from megatron_trainjob import launcher
from megatron_trainjob.launcher import Directive, LauncherReport
from megatron_trainjob.termination import TerminationRecord
from tests.support.operator.job_values import NOW, RUNNING_STATUS, beat, condition, conditions, failed, job, pod, seen

MASTER, WORKER = names.pod_name("tune", 0, 0), names.pod_name("tune", 0, 1)
KILLED = TerminationRecord(exit_code=137, reason="signal 9", rank=1, iteration=None, message="killed")
LOST_PEER = TerminationRecord(exit_code=1, reason="ERROR", rank=0, iteration=12, message="connection reset")


def heard(state="running", failure=None, *, attempt=0, age_s=1.0, stages=None, container=0, memory=None):
    known = {"attempt": attempt, "state": state, "failure": failure, "age_s": age_s, "container": container}
    known["memory_iteration"] = memory
    report = LauncherReport(**known, stages_s=stages or {})
    return HeardReport(report=report, at=NOW)


def gang(master=None, worker=None, *, status=None, **fields):
    """Two running pods whose launchers say this."""
    said = {MASTER: master or heard(), WORKER: worker or heard("failed", KILLED)}
    known = {"progress": beat(checkpoint_iteration=10), "launchers": said, **fields}
    return seen(pod(0), pod(1), status=status, **known)


def restarted(**fields):
    """The status after a restart in place of attempt 0, decided ten seconds ago."""
    return {
        **RUNNING_STATUS,
        "conditions": [*RUNNING_STATUS["conditions"], condition(names.RESTARTING, is_true=False)],
        "restarts": {"total": 1, "counted": 1, "attempt": 1, "podAttempt": 0, "uncountedInARow": 0, **fields},
        "lastRestartTime": to_text(NOW - 10),
        "lastRestart": {"attempt": 1, "inPlace": True, "decidedTime": to_text(NOW - 10)},
    }


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


OUT_OF_MEMORY = ContainerEnd(exit_code=137, reason="OOMKilled", finished_at=NOW - 1)
DOWN = {"ready": False, "is_down": True, "last_end": OUT_OF_MEMORY}
ENDED = replace(KILLED, reason=launcher.CONTAINER_ENDED)


def with_container(worker=None, report=None, **fields):
    """The gang, whose worker's container has ended (`fields` of its pod), and its last report."""
    return replace(gang(worker=report or heard(), **(worker or {})), pods=(pod(0), pod(1, **{**DOWN, **fields})))


def test_a_container_that_starts_again_restarts_the_ranks_in_place():
    plan = reconcile.plan(job(), with_container(), NOW)
    assert (plan.delete, plan.create) == ((), ())
    assert (plan.status["restarts"]["attempt"], plan.status["restarts"]["podAttempt"]) == (1, 0)
    last = plan.status["lastFailure"]
    assert (last["pod"], last["exitCode"], last["reason"], last.get("rank")) == (
        WORKER,
        137,
        "OOMKilled",
        None,
    )
    waits = with_container({"master": heard(attempt=1), "status": plan.status})
    assert reconcile.plan(job(), waits, NOW + 1).status is None, "its end was counted, though the pod still shows it"
    joins = with_container({"master": heard(attempt=1), "status": plan.status}, heard("failed", ENDED), is_down=False)
    assert (reconcile.plan(job(), joins, NOW + 2).status or plan.status)["restarts"]["attempt"] == 1


def test_a_launcher_that_speaks_for_the_container_before_names_its_end():
    joins = with_container(report=heard("failed", ENDED), is_down=False, num_container_restarts=1)
    plan = reconcile.plan(job(), joins, NOW)
    assert (plan.delete, plan.status["restarts"]["podAttempt"]) == ((), 0)
    assert plan.status["lastFailure"]["reason"] == "OOMKilled"


def test_a_job_that_fails_ends_a_container_that_would_start_again_and_again_unheard():
    limit = job({"failurePolicy": {"maxRestarts": 0}})
    loops = with_container({"launchers": {MASTER: heard()}}, num_container_restarts=1)
    plan = reconcile.plan(limit, loops, NOW)
    assert conditions(plan.status)["Failed"] == ("True", names.MAX_RESTARTS_EXCEEDED)
    assert {each.name for each in plan.delete} == {MASTER, WORKER}
    left = replace(loops, status=plan.status)
    assert WORKER in {each.name for each in reconcile.plan(limit, left, NOW + 1).delete}


def test_a_launcher_is_heard_before_its_kubelet_says_that_the_container_runs_again():
    """Its ranks of the next attempt run, while the pod still shows how the container before ended."""
    status = {**restarted(), "lastRestart": {**restarted()["lastRestart"], "ranksStartedTime": to_text(NOW)}}
    runs = with_container({"master": heard(attempt=1), "status": status}, heard(attempt=1, container=1))
    plan = reconcile.plan(job(), runs, NOW)
    assert (plan.delete, (plan.status or status)["restarts"]["attempt"]) == ((), 1)
    again = with_container(
        {"master": heard(attempt=1, stages={"firstStep": 1.0}), "status": status},
        heard(attempt=1, container=1),
        num_container_restarts=1,
    )
    assert reconcile.plan(job(), again, NOW).status["restarts"]["attempt"] == 2, "it has ended too"
    fails = with_container(
        {"master": heard(attempt=1, stages={"firstStep": 1.0}), "status": status},
        heard("failed", KILLED, attempt=1, container=1),
    )
    assert reconcile.plan(job(), fails, NOW).status["lastFailure"]["message"] == "killed", "a rank of the new one"


NO_MORE = {
    "the kubelet makes it wait": with_container(num_container_restarts=2),
    "its node is lost": with_container({"lost_nodes": frozenset({"node-1"})}),
    "its pod goes": with_container(deleting=True),
    "its launcher is of an earlier release": with_container(report=heard(container=None)),
    "never heard, and ending again and again": with_container(
        {"launchers": {MASTER: heard()}}, num_container_restarts=1
    ),
}


@pytest.mark.parametrize("observed", NO_MORE.values(), ids=NO_MORE)
def test_a_container_that_cannot_join_makes_a_new_gang(observed):
    plan = reconcile.plan(job(), observed, NOW)
    assert plan.delete
    assert "podAttempt" not in plan.status["restarts"]


def test_a_container_that_was_never_heard_starts_again_by_itself():
    plan = reconcile.plan(job(), with_container({"launchers": {MASTER: heard()}}), NOW)
    assert (plan.delete, (plan.status or RUNNING_STATUS)["restarts"]["attempt"]) == ((), 0)


def test_a_container_that_does_not_start_again_and_is_never_heard_counts_as_ended():
    """As where an older kubelet ignores the rule, and a sidecar keeps the pod running."""
    silent = with_container({"launchers": {}, "listens_since": NOW - 30})
    plan = reconcile.plan(job(), silent, NOW)
    assert (plan.delete, plan.requeue_s) == ((), 59.0), "a minute after its end"
    plan = reconcile.plan(job(), silent, NOW + 59)
    assert {each.name for each in plan.delete} == {MASTER, WORKER}
    assert (plan.status["lastFailure"]["reason"], plan.status["restarts"]["counted"]) == ("OOMKilled", 1)
    listens = replace(silent, listens_since=NOW + 50)
    assert reconcile.plan(job(), listens, NOW + 59).delete == (), "a new operator first listens"


def test_a_launcher_of_an_earlier_release_that_trains_on_unasked_is_counted_and_ended():
    """No one saw its container down; its ranks are not those that were decided about."""
    trains = with_container(report=heard(container=None), is_down=False, num_container_restarts=1)
    plan = reconcile.plan(job(), trains, NOW)
    assert {each.name for each in plan.delete} == {MASTER, WORKER}
    assert (plan.status["restarts"]["counted"], plan.status["lastFailure"]["reason"]) == (1, "OOMKilled")
    limit = job({"failurePolicy": {"maxRestarts": 0}})
    assert WORKER in {each.name for each in reconcile.plan(limit, trains, NOW).delete}, "it would not end by itself"


def test_a_container_that_was_started_again_and_trains_unheard_is_counted_after_a_minute():
    """As that of an image from before launchers reported: it would train on, its restarts neither told nor bounded."""
    known = {"is_down": False, "num_container_restarts": 1, "has_attempt_file": True}
    trains = with_container({"launchers": {MASTER: heard()}, "listens_since": NOW - 30}, **known)
    plan = reconcile.plan(job(), trains, NOW)
    assert (plan.delete, plan.requeue_s) == ((), 59.0), "a launcher of this release may still import"
    plan = reconcile.plan(job(), trains, NOW + 59)
    assert {each.name for each in plan.delete} == {MASTER, WORKER}
    assert (plan.status["restarts"]["counted"], plan.status["lastFailure"]["reason"]) == (1, "OOMKilled")
    assert {"PodFailed", "JobRestarting"} <= {event.reason for event in plan.events}


RIGHTLY_UNHEARD = {
    "no one waits for a word of another program": with_container(
        {"launchers": {}, "listens_since": NOW - 99}, is_down=False, num_container_restarts=1
    ),
    "its restart was decided, and its line is cut": with_container(
        {"launchers": {}, "listens_since": NOW - 99, "status": restarted(), "progress": beat(attempt=1)},
        is_down=False,
        num_container_restarts=1,
        has_attempt_file=True,
    ),
}


@pytest.mark.parametrize("observed", RIGHTLY_UNHEARD.values(), ids=RIGHTLY_UNHEARD)
def test_a_container_that_may_run_unheard_stays(observed):
    assert reconcile.plan(job(), observed, NOW + 99).delete == ()


def test_a_container_that_starts_again_has_time_for_its_imports():
    awaited = {"master": heard(attempt=1), "status": restarted()}
    down = with_container(awaited)
    assert reconcile.plan(job(), down, NOW + 29).delete == ()
    plan = reconcile.plan(job(), down, NOW + 30)
    assert plan.delete, "forty seconds after the decision"
    assert plan.status["lastFailure"]["reason"] == names.NOT_STARTED_IN_PLACE
    imports = replace(heard("starting", attempt=1), at=NOW + 40)
    known = {**awaited, "launchers": {MASTER: heard(attempt=1), WORKER: imports}}
    importing = with_container(known, is_down=False, num_container_restarts=1)
    assert reconcile.plan(job(), importing, NOW + 50).delete == ()
    assert reconcile.plan(job(), importing, NOW + 56).delete, "it has fallen silent"


def test_a_job_that_fails_leaves_such_a_pod_to_end_by_itself():
    """Its launcher hears so as soon as it runs again, and exits with a code after which it is not started."""
    limit = job({"failurePolicy": {"maxRestarts": 0}})
    plan = reconcile.plan(limit, with_container(), NOW)
    assert conditions(plan.status)["Failed"] == ("True", names.MAX_RESTARTS_EXCEEDED)
    assert {each.name for each in plan.delete} == {MASTER}
    told = attempts.directive(plan.status, replace(PLACE, role="worker"), heard("failed", ENDED).report, NOW, 1.0)
    assert told.ends
    late = with_container({"status": plan.status})
    assert WORKER in {each.name for each in reconcile.plan(limit, late, NOW + 121).delete}


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


PLACE = names.Place(attempt=0, role="master", index=0)
TOLD = {
    "no news": (RUNNING_STATUS, heard(), Directive(attempt=0)),
    "no status yet": ({}, heard(), Directive(attempt=0)),
    "the next attempt": (restarted(), heard(), Directive(attempt=1)),
    "a back-off that is not over": (
        restarted(nextRetryTime=to_text(NOW + 3)),
        heard(),
        Directive(attempt=0, interval_s=3.0),
    ),
    "a long back-off": (
        restarted(nextRetryTime=to_text(NOW + 25)),
        heard(),
        Directive(attempt=0, interval_s=5.0),
    ),
    "a back-off that is over": (restarted(nextRetryTime=to_text(NOW - 5)), heard(), Directive(attempt=1)),
    "a pod of an earlier gang": (restarted(podAttempt=1), heard(), Directive(attempt=0, ends=True)),
    "a job that failed": (
        {**RUNNING_STATUS, "conditions": [condition(names.FAILED)]},
        heard(),
        Directive(attempt=0, ends=True),
    ),
    "an attempt that no one decided": (RUNNING_STATUS, heard(attempt=1), None),
}


@pytest.mark.parametrize(("status", "report", "directive"), TOLD.values(), ids=TOLD)
def test_directives_that_a_launcher_receives(status, report, directive):
    assert attempts.directive(status, PLACE, report.report, NOW, 1.0) == directive


def test_reports_and_directives_survive_the_wire():
    placed = replace(KILLED, host="machine-1", stack="step (train/loop.py:7)", gpu_error="GPU 0: Xid 48")
    for report in (heard().report, heard("failed", placed, stages={"loaded": 1.5}, container=None, memory=50).report):
        assert launcher.read_report(report.to_fields()) == report
    directive = Directive(attempt=3, ends=True, interval_s=2.0)
    assert launcher.read_directive(directive.to_fields()) == directive


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"attempt": -1, "state": "running"},
        {"attempt": True, "state": "running"},
        {"attempt": 0, "state": "flying"},
        {"attempt": 0, "state": "failed"},
        {"attempt": 0, "state": "running", "failure": KILLED.to_fields()},
        {"attempt": 0, "state": "failed", "failure": {"exitCode": 1e9, "rank": 0}},
        {"attempt": 0, "state": "failed", "failure": {"exitCode": 1, "rank": "x"}},
        {"attempt": 0, "state": "running", "ageSeconds": float("nan")},
        {"attempt": 0, "state": "running", "stageSeconds": {"loaded": "soon"}},
    ],
)
def test_a_report_that_is_none_is_refused(body):
    with pytest.raises(ValueError, match="must be|is given"):
        launcher.read_report(body)


@pytest.mark.parametrize(
    ("state", "of_job", "in_all", "interval_s"),
    [
        ("running", 2, 2, 1.0),
        ("running", 1, 1, 10.0),
        ("running", 8, 500, 10.0),
        ("running", 8, 10_000, 60.0),
        ("failed", 2, 8, 0.2),
        ("failed", 1, 200, 4.0),
        ("failed", 2, 10_000, 10.0),
        ("failed", 500, 500, 10.0),
    ],
)
def test_reports_are_few_however_many_launchers_there_are(state, of_job, in_all, interval_s):
    report = heard(state, KILLED if state == "failed" else None).report
    assert attempts.interval_s(report, of_job, in_all) == interval_s


@pytest.mark.parametrize(
    ("others", "age_s", "state", "interval_s"),
    [
        (heard(), 1.0, "running", 20.0),
        (heard(), 1000.0, "running", 10.0),  # of pods that have ended, whose jobs are kept
        (heard(), 1.0, "failed", 0.2),
        (heard("failed", KILLED), 1.0, "failed", 10.0),  # as when storage that all use is gone
    ],
)
def test_launchers_report_as_often_as_there_are_others_alike(monkeypatch, others, age_s, state, interval_s):
    jobs, key = Jobs(), ("research", "tune")
    for name in ("tune", *(f"other-{number}" for number in range(999))):
        metadata = {"namespace": "research", "name": name, "uid": "u", "resourceVersion": "1"}
        jobs.put({"metadata": metadata, "status": RUNNING_STATUS})
    controller = Controller(client=None, recorder=None, cache=None, jobs=jobs, metrics=None)
    monkeypatch.setattr(clock, "now", lambda: NOW - age_s)
    for number in range(999):
        controller.take_report(("research", f"other-{number}"), "u", MASTER, others.report)
    monkeypatch.setattr(clock, "now", lambda: NOW)
    report = heard(state, KILLED if state == "failed" else None).report
    controller.take_report(key, "u", MASTER, report)
    assert controller.directive(key, "u", PLACE, report).interval_s == interval_s


def test_a_slow_rank_is_in_the_pod_that_is_there():
    slow = beat(attempt=1, slow_rank=1, slow_rank_ratio=2.0)
    plan = reconcile.plan(job(), gang(heard(attempt=1), heard(attempt=1), status=restarted(), progress=slow), NOW)
    (said,) = (each for each in plan.status["conditions"] if each["type"] == names.SLOW_RANK)
    assert f"(pod {WORKER}, node node-1)" in said["message"]
