"""events: what a status alone tells, so that whoever comes after a killed operator tells it in its place, once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator.cli import status
from megatron_operator.cluster.kubernetes.events import event_name
from megatron_operator.core import events, reconcile
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen
from megatron_operator.timestamp import to_text
from tests.support.operator.job_values import NOW, beat, failed, job, pod, seen

SITUATIONS = {
    "hung": (job(), seen(pod(0), pod(1), progress=beat(age_s=9999))),
    "failed pod": (job(), seen(pod(0), failed(1, 137))),
    "final code": (job(), seen(pod(0), failed(1, 65))),
    "success": (job(), seen(pod(0, phase="Succeeded"), pod(1, phase="Succeeded"))),
    "suspended": (job({"suspend": True}), seen(pod(0), pod(1))),
    "resized": (job({"elasticPolicy": {"minNodes": 1, "maxNodes": 4}, "numNodes": 4}), seen(pod(0), pod(1))),
}


def names_of(told) -> set[str]:
    """Names of the event objects, as the recorder makes them."""
    return {event_name({"metadata": {"name": "tune", "uid": "uid-1"}}, event) for event in told}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_a_killed_operator_wrote_and_did_not_tell_its_successor_tells_once(situation: str):
    wanted, known = SITUATIONS[situation]
    plan = reconcile.plan(wanted, known, NOW)
    told_of = {event for event in plan.events if event.of}
    assert told_of
    again = events.recent(plan.status, NOW + 60)
    assert names_of(told_of) <= names_of(again)
    assert {(event.reason, event.message) for event in told_of} <= {(event.reason, event.message) for event in again}
    assert events.recent(plan.status, NOW + 3600) == ()


@pytest.mark.parametrize(
    ("rank", "place"),
    [(1, "Pod tune-a0-worker-0 (rank 1, node node-1)"), (None, "Pod tune-a0-worker-0 (node node-1)")],
)
def test_a_failure_names_rank_and_node(rank, place):
    plan = reconcile.plan(job(), seen(pod(0), replace(failed(1, 1), rank=rank)), NOW)
    assert (plan.status["lastFailure"].get("rank"), plan.status["lastFailure"]["node"]) == (rank, "node-1")
    assert f"{place} ended with exit code 1" in next(event.message for event in plan.events)
    assert place.lower() in next(each["message"] for each in plan.status["conditions"] if each["type"] == "Restarting")
    of_rank = "" if rank is None else "rank 1 of "
    assert f"in {of_rank}tune-a0-worker-0 on node node-1" in dict(status.rows(plan.status))["last failure"]


def test_a_failure_names_host_and_place_in_the_program():
    known = replace(
        failed(1, 1), host="tune-a0-worker-0", stack="train_step (train/step.py:88) < _fit (train/loop.py:57)"
    )
    plan = reconcile.plan(job(), seen(pod(0), known), NOW)
    last = plan.status["lastFailure"]
    assert (last["host"], last["stack"]) == (known.host, known.stack)
    assert f"Its stack: {known.stack}." in next(event.message for event in plan.events)


@pytest.mark.parametrize(("ratio", "times"), [(1.8, "1.80 times"), (None, "far more than")])
def test_a_slow_rank_is_named_with_its_pod_and_node_as_long_as_it_is_slow(ratio, times):
    slow = replace(beat(), slow_rank=1, slow_rank_ratio=ratio)
    plan = reconcile.plan(job(), seen(pod(0), pod(1), progress=slow), NOW)
    (condition,) = (each for each in plan.status["conditions"] if each["type"] == "SlowRank")
    assert condition["status"] == "True"
    assert f"Rank 1 (pod tune-a0-worker-0, node node-1) has taken {times} the median" in condition["message"]
    assert "SlowRank" in [event.reason for event in plan.events]
    healed = reconcile.plan(job(), replace(seen(pod(0), pod(1), progress=beat()), status=plan.status), NOW + 60)
    assert "SlowRank" not in [each["type"] for each in (healed.status or plan.status)["conditions"]]


def test_a_slow_rank_that_the_job_does_not_have_is_not_believed():
    slow = replace(beat(), slow_rank=job().world_size)
    plan = reconcile.plan(job(), seen(pod(0), pod(1), progress=slow), NOW)
    assert "SlowRank" not in [each["type"] for each in plan.status["conditions"]]


def test_a_rank_that_the_job_does_not_have_is_not_believed():
    plan = reconcile.plan(job(), seen(pod(0), replace(failed(1, 1), rank=job().world_size)), NOW)
    assert "rank" not in plan.status["lastFailure"]


def test_a_restart_emits_its_event_even_if_the_new_gang_already_runs():
    plan = reconcile.plan(job(), seen(pod(0), pod(1), progress=beat(age_s=9999)), NOW)
    gang = Seen(pods=(pod(0, attempt=1), pod(1, attempt=1)), status=plan.status)
    running = reconcile.plan(job(), gang, NOW + 5)
    assert [event.reason for event in running.events] == ["JobRunning"]
    assert names_of(plan.events) <= names_of(events.recent(running.status, NOW + 6))


def test_a_second_restart_and_a_second_suspension_are_events_of_their_own():
    def restarted(wanted: Job, known: Seen) -> set[str]:
        plan = reconcile.plan(wanted, known, NOW)
        following = replace(known, pods=(pod(0, attempt=1), failed(1, 137, attempt=1)), status=plan.status)
        second = reconcile.plan(wanted, following, NOW + 1)
        assert [event.reason for event in second.events][-2:] == ["PodFailed", "JobRestarting"]
        assert not names_of(plan.events) & names_of(second.events)
        return names_of(second.events)

    assert restarted(job(), seen(pod(0), failed(1, 137)))
    suspended = reconcile.plan(job({"suspend": True}), seen(pod(0), pod(1)), NOW)
    resumed = reconcile.plan(job(), seen(status=suspended.status), NOW + 10)
    again = reconcile.plan(job({"suspend": True}), seen(status=resumed.status), NOW + 20)
    assert [event.reason for event in again.events] == ["JobSuspended"]
    assert not names_of(suspended.events) & names_of(again.events)


def test_the_pause_before_a_restart_is_the_back_off_to_the_second():
    plan = reconcile.plan(job(), seen(failed(0), pod(1)), NOW + 0.788)
    assert plan.status["restarts"]["nextRetryTime"] == to_text(NOW + 11)
    assert plan.events[-1].message == "Starting attempt 1 in 10 s (PodFailed)."
