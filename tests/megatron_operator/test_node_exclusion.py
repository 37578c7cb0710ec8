"""Nodes on which a job failed repeatedly: what counts, what is written down, which pods are kept away, for how long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator.api import names
from megatron_operator.core import events, reconcile
from megatron_operator.core.attempts import HeardReport
from megatron_operator.core.desired.placement import away_from
from megatron_operator.core.pod_end import ContainerEnd
from megatron_operator.core.status import fitting
from megatron_operator.timestamp import to_text
from megatron_trainjob.launcher import LauncherReport
from tests.support.operator.job_values import NOW, RUNNING_STATUS, failed, job, pod, seen

DAY_S = 86_400
ON = {"failurePolicy": {"nodeExclusion": {}, "maxRestarts": 20}}


def failed_before(*nodes, failures=1, age_s=100.0):
    """The running status in which the job has failed on these nodes."""
    known = [{"name": node, "failures": failures, "lastFailureTime": to_text(NOW - age_s)} for node in nodes]
    return {**RUNNING_STATUS, "failedNodes": known}


def test_a_second_failure_on_a_node_excludes_it_before_the_next_pods_are_made():
    plan = reconcile.plan(job(ON), seen(pod(0), failed(1, 134), status=failed_before("node-1", "node-7")), NOW)
    assert plan.status["failedNodes"] == [
        {"name": "node-1", "failures": 2, "lastFailureTime": to_text(NOW), "excludedTime": to_text(NOW)},
        {"name": "node-7", "failures": 1, "lastFailureTime": to_text(NOW - 100)},
    ]
    assert fitting(plan.status) == plan.status
    told = next(each for each in plan.events if each.reason == "NodeExcluded")
    assert (told.type, "node-1: 2 failures" in told.message) == ("Warning", True)
    assert told in events.recent(plan.status, NOW + 10), "also of an operator that was killed before it told"
    after = replace(seen(status=plan.status), service_selector=None)
    made = [each for each in reconcile.plan(job(ON), after, NOW + 60).create if each["kind"] == "Pod"]
    assert len(made) == 2
    for each in made:
        assert each["spec"]["affinity"]["nodeAffinity"] == affinity("node-1")


def affinity(*nodes, **more):
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    terms = {"nodeSelectorTerms": [{**more, "matchFields": fields}]}
    return {"requiredDuringSchedulingIgnoredDuringExecution": terms}


UNCOUNTED = {
    "switched off": ({}, failed(1, 134)),
    "deleted by hand": (ON, pod(1, deleting=True)),
    "evicted": (ON, failed(1, 137, disruption="EvictionByEvictionAPI")),
    "refused at its admission": (ON, failed(1, None, reason="OutOfcpu")),
    "out of memory by its own limit": (ON, failed(1, 137, reason="OOMKilled")),
}


@pytest.mark.parametrize(("spec", "worker"), UNCOUNTED.values(), ids=UNCOUNTED)
def test_what_is_not_the_nodes_is_not_counted(spec, worker):
    plan = reconcile.plan(job(spec), seen(pod(0), worker), NOW)
    assert plan.status["restarts"]["attempt"] == 1
    assert "failedNodes" not in plan.status


def test_a_lost_node_counts_though_its_restart_does_not():
    lost = seen(pod(0), pod(1, deleting=True), lost_nodes=frozenset({"node-1"}))
    plan = reconcile.plan(job(ON), lost, NOW)
    assert (plan.status["restarts"]["counted"], plan.status["failedNodes"][0]["failures"]) == (0, 1)


def test_failures_are_forgotten_and_the_node_is_used_again():
    old = failed_before("node-1", failures=5, age_s=DAY_S)
    plan = reconcile.plan(job(ON), seen(pod(0), failed(1, 134), status=old), NOW)
    assert plan.status["failedNodes"] == [{"name": "node-1", "failures": 1, "lastFailureTime": to_text(NOW)}]
    made = reconcile.plan(job(ON), seen(status=old), NOW).create
    assert not any("affinity" in each["spec"] for each in made if each["kind"] == "Pod")


def test_of_too_many_nodes_those_that_failed_last_are_excluded():
    spec = {"failurePolicy": {**ON["failurePolicy"], "nodeExclusion": {"afterFailures": 1, "maxNodes": 2}}}
    plan = reconcile.plan(job(spec), seen(pod(0), failed(1, 134), status=failed_before("a", "b", "c")), NOW)
    assert [each["name"] for each in plan.status["failedNodes"] if "excludedTime" in each] == ["node-1", "a"]
    many = failed_before(*(f"n{i}" for i in range(32)))
    plan = reconcile.plan(job(spec), seen(pod(0), failed(1, 134), status=many), NOW)
    assert len(plan.status["failedNodes"]) == 32
    assert fitting(plan.status) == plan.status


def test_ranks_do_not_start_again_in_place_on_a_node_that_is_excluded():
    heard = HeardReport(report=LauncherReport(attempt=0, state="running", container=0), at=NOW)
    launchers = {names.pod_name("tune", 0, rank): heard for rank in (0, 1)}
    down = pod(1, is_down=True, last_end=ContainerEnd(exit_code=139, finished_at=NOW - 1))
    first = seen(pod(0), down, launchers=launchers)
    assert reconcile.plan(job(ON), first, NOW).delete == ()
    again = replace(first, status=failed_before("node-1"))
    plan = reconcile.plan(job(ON), again, NOW)
    assert {each.name for each in plan.delete} == {*launchers}
    assert "podAttempt" not in plan.status["restarts"]


def waiting_gang(status):
    """One pod runs, the other finds no node since node-1 is excluded."""
    fields = {"node": "", "scheduled_at": None, "unschedulable": "0/2 nodes are available"}
    waits = pod(1, phase="Pending", kept_from=frozenset({"node-1"}), **fields)
    return seen(pod(0), waits, status=status)


@pytest.mark.parametrize(
    ("spec", "status"),
    [(ON, failed_before("node-1", failures=2, age_s=DAY_S)), ({}, failed_before("node-1", failures=2))],
    ids=["forgotten", "field removed"],
)
def test_pods_that_wait_because_of_an_exclusion_that_is_over_are_recreated(spec, status):
    """Their affinity cannot change, and they would wait indefinitely."""
    plan = reconcile.plan(job(spec), waiting_gang(status), NOW)
    assert len(plan.delete) == 2
    assert (plan.status["restarts"]["attempt"], plan.status["restarts"]["counted"]) == (1, 0)
    assert "NodesUsedAgain" in {each.reason for each in plan.events}
    assert "failedNodes" not in plan.status


def test_pods_wait_while_their_node_is_excluded():
    status = failed_before("node-1", failures=2, age_s=DAY_S - 50)
    plan = reconcile.plan(job(ON), waiting_gang(status), NOW)
    assert (plan.delete, plan.requeue_s) == ((), 50.0)
    running = seen(pod(0), pod(1, kept_from=frozenset({"node-1"})), status=RUNNING_STATUS)
    assert reconcile.plan(job(ON), running, NOW).delete == (), "pods that have their nodes stay"


def test_every_alternative_of_the_users_own_affinity_is_narrowed():
    zone = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
    rack = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["x"]}]}
    given = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [zone, rack, {}]}}
    }
    body = {"metadata": {"name": "p"}, "spec": {"affinity": {**given, "podAffinity": {"kept": True}}}}
    pod_made = away_from(body, ["bad"])
    made = pod_made["spec"]["affinity"]
    assert pod_made["metadata"]["annotations"] == {names.ANNOTATION_KEPT_FROM: "bad"}
    (required,) = made["nodeAffinity"].values()
    not_bad = {"key": "metadata.name", "operator": "NotIn", "values": ["bad"]}
    assert required["nodeSelectorTerms"] == [
        {**zone, "matchFields": [not_bad]},
        {"matchFields": [*rack["matchFields"], not_bad]},
        {},
    ]
    assert made["podAffinity"] == {"kept": True}
    assert body["spec"]["affinity"]["nodeAffinity"] == given["nodeAffinity"], "nothing is changed in place"
