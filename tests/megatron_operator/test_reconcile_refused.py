"""reconcile: what becomes of a job whose manifest is refused, also of the gang that already trains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator import timestamp
from megatron_operator.api import names
from megatron_operator.core import reconcile
from megatron_operator.core.plan import Plan
from megatron_trainjob.violation import Violation
from tests.support.operator.job_values import NOW, RUNNING_STATUS, beat, conditions, failed, pod, raw, ref, seen

NO_TEXT = (Violation(path="spec.image", value=3, message="must be text"),)
REFUSED_SINCE = (Violation(path="spec.env[0].name", value="MTJ_NEW", message="is set by the operator; remove it"),)


def test_an_invalid_manifest_fails_the_job_once_with_every_problem():
    violations = (Violation(path="spec.numNodes", value=0, message="must be at least 1"), *NO_TEXT)
    plan = reconcile.reject(raw(generation=2), violations, seen(pod(0), pod(1)), NOW)
    said = "spec.numNodes: must be at least 1 (got 0); spec.image: must be text (got 3)"
    assert conditions(plan.status)["Failed"] == ("True", "InvalidSpec")
    assert conditions(plan.status)["Stalled"] == ("True", "JobFailed")
    assert (plan.status["phase"], plan.status["completionTime"]) == ("Failed", "2027-01-15T08:00:00Z")
    assert (plan.create, plan.delete, plan.requeue_s) == ((), (ref(0), ref(1)), None)
    assert [(event.type, event.reason, event.message) for event in plan.events] == [("Warning", "InvalidSpec", said)]
    assert reconcile.reject(raw(generation=2), violations, seen(status=plan.status), NOW) == Plan()


def test_a_gang_that_an_older_operator_started_trains_to_its_end_under_a_manifest_refused_since():
    running = seen(pod(0), pod(1), status={**RUNNING_STATUS, "replicas": 2})
    plan = reconcile.reject(raw(), REFUSED_SINCE, running, NOW)
    assert (plan.delete, plan.status["phase"]) == ((), "Running")
    assert conditions(plan.status)["Stalled"] == ("True", "InvalidSpec")
    assert reconcile.reject(raw(), REFUSED_SINCE, replace(running, status=plan.status), NOW + 9) == Plan()
    over = seen(pod(0, phase="Succeeded"), pod(1, phase="Succeeded"), status=plan.status)
    done = reconcile.reject(raw(), REFUSED_SINCE, over, NOW)
    assert (done.status["phase"], conditions(done.status)["Complete"][0]) == ("Succeeded", "True")
    assert "Stalled" not in conditions(done.status)
    assert [event.reason for event in done.events] == ["JobSucceeded"]
    lost = seen(failed(0), pod(1, phase="Succeeded"), status=plan.status)
    assert reconcile.reject(raw(), REFUSED_SINCE, lost, NOW).status["reason"] == "InvalidSpec"


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
    started = {**RUNNING_STATUS, "replicas": 2, "startTime": timestamp.to_text(NOW)}
    running = seen(pod(0), pod(1), status=started, **observed)
    early = reconcile.reject(raw(limits), REFUSED_SINCE, running, NOW + 1)
    assert (early.delete, early.status["phase"], early.requeue_s) == ((), "Running", after_s - 1)
    over = reconcile.reject(raw(limits), REFUSED_SINCE, running, NOW + after_s)
    assert (over.status["phase"], over.status["reason"]) == ("Failed", reason)
    assert over.delete == (ref(0), ref(1))
    (claim,) = [each for each in over.status["conditions"] if each["type"] == "Failed"]
    assert "spec.env[0].name" in claim["message"]


def test_what_outlived_the_end_of_a_refused_job_is_deleted_again():
    """The status is written first; the deletions after it may fail, or their operator die."""
    spare = replace(pod(0), name=names.spare_name("tune", 0, 0), uid="spare", role=names.SPARE)
    counted = {**RUNNING_STATUS, "replicas": 2, "spares": {"desired": 1, "running": 1}}
    half = replace(seen(failed(0), pod(1), status=counted), spares=(spare,))
    ended = reconcile.reject(raw(), NO_TEXT, half, NOW)
    assert ended.status["spares"] == {"desired": 1, "running": 0}
    left = replace(half, status=ended.status)
    again = reconcile.reject(raw(), NO_TEXT, left, NOW + 1)
    assert (again.status, {each.name for each in again.delete}) == (None, {ref(1).name, spare.name})
    policy = {"runPolicy": {"cleanPodPolicy": "None"}}
    assert {each.name for each in reconcile.reject(raw(policy), NO_TEXT, left, NOW + 1).delete} == {spare.name}


def test_a_failed_pod_ends_the_gang_whose_manifest_is_refused_though_others_wait_for_it():
    half = seen(failed(0), pod(1), status={**RUNNING_STATUS, "replicas": 2})
    plan = reconcile.reject(raw(), NO_TEXT, half, NOW)
    assert (plan.status["phase"], plan.delete) == ("Failed", (ref(1),))
