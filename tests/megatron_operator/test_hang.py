"""decide/hang: a gang that trained and then sent no heartbeat is restarted; anything else is left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator.core import push, reconcile
from megatron_operator.timestamp import to_text
from tests.support.operator.job_values import NOW, RUNNING_STATUS, beat, conditions, job, pod, seen


def test_a_gang_without_a_sign_of_life_is_restarted_as_hung():
    healthy = seen(pod(0), pod(1), progress=beat(age_s=1700))
    assert reconcile.plan(job(), healthy, NOW).requeue_s == 100.0
    hung = reconcile.plan(job(), replace(healthy, progress=beat(age_s=1800)), NOW)
    assert conditions(hung.status)["Restarting"] == ("True", "Hung")
    assert hung.status["restarts"]["counted"] == 1
    assert hung.status["lastFailure"]["iteration"] == 10
    assert [event.reason for event in hung.events] == ["JobHung", "JobRestarting"]


@pytest.mark.parametrize(
    "progress",
    [None, beat(age_s=9999, attempt=3), beat(age_s=9999, phase="starting"), beat(age_s=9999, phase="finished")],
    ids=["never heard", "another attempt's", "starting", "finished"],
)
def test_hang_detection_needs_a_heartbeat_of_this_attempt(progress):
    plan = reconcile.plan(job(), seen(pod(0), pod(1), progress=progress), NOW)
    assert plan.delete == ()


def test_hang_detection_can_be_switched_off():
    spec = {"failurePolicy": {"hangTimeoutSeconds": 0}}
    assert reconcile.plan(job(spec), seen(pod(0), pod(1), progress=beat(age_s=9999)), NOW).delete == ()


METRICS = [{"name": "loss", "value": "2.5"}]


@pytest.mark.parametrize(
    ("stored", "hangs"),
    [
        ({"iteration": 40, "metrics": METRICS}, True),
        ({"iteration": 40, "metrics": []}, False),
        ({"iteration": 100, "metrics": METRICS}, False),
    ],
    ids=["trains", "loads a checkpoint", "exports"],
)
def test_an_operator_that_begins_while_a_gang_loads_or_exports_does_not_take_it_for_hung(stored, hangs):
    """What it knows of it is in the status, which has no phase."""
    progress = {"totalIterations": 100, "lastUpdatedTime": to_text(NOW - 3000), **stored}
    status = {**RUNNING_STATUS, "startTime": to_text(NOW - 9000), "progress": progress}
    silent = seen(pod(0), pod(1), status=status, progress=push.remembered(status), listens_since=NOW - 1800)
    plan = reconcile.plan(job(), silent, NOW)
    assert (plan.status is not None and plan.status["restarts"]["counted"] == 1) == hangs
