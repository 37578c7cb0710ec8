"""reconcile: how a job ends, and what is cleaned up after it."""

from __future__ import annotations

import pytest

from megatron_operator.api import names
from megatron_operator.core import reconcile
from megatron_operator.core.plan import Plan, Ref
from tests.support.operator.job_values import (
    NOW,
    RUNNING_STATUS,
    START,
    condition,
    conditions,
    failed,
    job,
    pod,
    ref,
    seen,
)


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


def test_the_active_deadline_fails_the_job_without_any_other_event():
    spec = {"runPolicy": {"activeDeadlineSeconds": 3600}}
    before = reconcile.plan(job(spec), seen(pod(0), pod(1)), NOW - 60)
    assert before.requeue_s == 60.0
    plan = reconcile.plan(job(spec), seen(pod(0), pod(1)), NOW)
    assert conditions(plan.status)["Failed"] == ("True", "DeadlineExceeded")
    assert plan.delete == (ref(0), ref(1))
    assert [event.reason for event in plan.events] == ["DeadlineExceeded"]
