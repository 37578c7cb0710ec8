"""Restart in place of a container that ended: when its pod stays, whose word counts, how long it is waited for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator.api import names
from megatron_operator.core import attempts, reconcile
from megatron_operator.core.pod_end import ContainerEnd
from megatron_operator.timestamp import to_text
from megatron_trainjob import launcher
from tests.support.operator.job_values import NOW, RUNNING_STATUS, beat, conditions, job, pod
from tests.support.operator.launcher_values import KILLED, MASTER, PLACE, WORKER, gang, heard, restarted

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
