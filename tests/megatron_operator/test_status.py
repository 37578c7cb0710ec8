"""status: what is written, and when a change is worth a write."""

from __future__ import annotations

from megatron_operator.api import names
from megatron_operator.core import status
from megatron_operator.core.decide.decision import Continue
from megatron_operator.timestamp import to_text
from tests.support.operator.job_values import NOW, RUNNING_STATUS, beat, job, pod, seen

LONG = {"total_iterations": 100_000}


def compute(*pods, now=NOW, **fields):
    return status.compute(job(), seen(*pods, **fields), Continue(), now)


def test_progress_is_shown_with_its_metrics_as_text():
    progress = beat(
        25,
        remaining_s=90.7,
        tokens_per_second_per_gpu=1234.56,
        metrics={"loss": 1.23456789, "grad_norm": float("nan")},
        checkpoint_iteration=20,
        checkpoint_path="/checkpoints/tune/iter_0000020",
    )
    written = compute(pod(0), pod(1), progress=progress)
    assert written["progress"] == {
        "iteration": 25,
        "totalIterations": 100,
        "percentage": 25,
        "estimatedRemainingSeconds": 90,
        "tokensPerSecondPerGPU": 1234.6,
        "metrics": [{"name": "loss", "value": "1.23457"}, {"name": "grad_norm", "value": "nan"}],
        "lastUpdatedTime": "2027-01-15T07:59:59Z",
        "attempt": 0,
    }
    assert written["checkpoint"] == {
        "latestIteration": 20,
        "path": "/checkpoints/tune/iter_0000020",
        "time": "2027-01-15T07:59:59Z",
    }


def test_at_most_32_metrics_are_kept():
    metrics = {f"metric_{i}": float(i) for i in range(50)}
    assert len(compute(pod(0), pod(1), progress=beat(metrics=metrics))["progress"]["metrics"]) == 32


def test_a_checkpoint_keeps_the_time_at_which_it_was_first_seen():
    first = compute(pod(0), pod(1), progress=beat(checkpoint_iteration=20, checkpoint_path="/c"))
    later = beat(30, age_s=-50, checkpoint_iteration=20, checkpoint_path="/c")
    assert compute(pod(0), pod(1), status=first, progress=later)["checkpoint"] == first["checkpoint"]


def test_a_transition_keeps_its_time_while_the_condition_stays():
    first = compute(pod(0), pod(1))
    later = compute(pod(0), pod(1), status=first, now=NOW + 500)
    assert [each["lastTransitionTime"] for each in later["conditions"]] == [
        each["lastTransitionTime"] for each in first["conditions"]
    ]


def test_pods_are_counted_by_role_and_phase():
    pods = (pod(0), pod(1, phase="Pending"))
    assert status.replica_statuses(job(), pods) == {
        "master": {"desired": 1, "pending": 0, "running": 1, "succeeded": 0, "failed": 0},
        "worker": {"desired": 1, "pending": 1, "running": 0, "succeeded": 0, "failed": 0},
    }


def test_a_job_of_one_node_has_no_workers_to_count():
    assert list(status.replica_statuses(job({"numNodes": 1}), ())) == [names.MASTER]


def test_a_new_percent_is_written_after_a_while():
    old = compute(pod(0), pod(1), progress=beat(10))
    new = compute(pod(0), pod(1), status=old, progress=beat(11), now=NOW + 4)
    assert status.changed(new, old, NOW + 4) == (None, status.SOFT_INTERVAL_S - 4)
    assert status.changed(new, old, NOW + status.SOFT_INTERVAL_S) == (new, None)


def test_progress_within_a_percent_is_written_once_a_minute():
    old = compute(pod(0), pod(1), progress=beat(1000, **LONG))
    new = compute(pod(0), pod(1), status=old, progress=beat(1001, **LONG), now=NOW + 15)
    assert status.changed(new, old, NOW + 15) == (None, 45.0)
    assert status.changed(new, old, NOW + 60) == (new, None)


def test_counts_wait_until_the_other_pods_may_have_ended_too():
    old = compute(pod(0), pod(1))
    one_ended = seen(pod(0), pod(1, phase="Succeeded", finished_at=NOW + 600), status=old)
    new = status.compute(job(), one_ended, Continue(), NOW + 600)
    settled_at = status.settled_at(one_ended, NOW + 600)
    assert settled_at == NOW + 600 + status.SETTLING_S
    assert status.changed(new, old, NOW + 600, settled_at) == (None, status.SETTLING_S)
    assert status.changed(new, old, settled_at, settled_at) == (new, None)


def test_a_node_whose_clock_is_ahead_holds_up_no_counts():
    assert status.settled_at(seen(pod(0, phase="Succeeded", finished_at=NOW + 900)), NOW) <= NOW


def test_a_heartbeat_alone_is_never_written():
    old = compute(pod(0), pod(1), progress=beat(10))
    new = compute(pod(0), pod(1), status=old, progress=beat(10, age_s=-999), now=NOW + 1000)
    assert status.changed(new, old, NOW + 1000) == (None, None)


def test_a_condition_that_turns_is_written_at_once():
    old = compute(pod(0), pod(1, phase="Pending"))
    new = compute(pod(0), pod(1), status=old, now=NOW + 1)
    assert status.changed(new, old, NOW + 1) == (new, None)


def test_the_status_says_what_auto_became():
    spec = {"nprocPerNode": "auto", "resourcesPerNode": {"limits": {"nvidia.com/gpu": "4"}}}
    assert status.resolved(job(spec)) == {
        "worldSize": 8,
        "dataParallelSize": 8,
        "microBatches": 2,
        "nprocPerNode": 4,
    }


def test_an_old_status_without_our_fields_is_taken_up():
    assert compute(pod(0), pod(1), status={})["startTime"] == to_text(NOW)
    assert compute(pod(0), pod(1), status=RUNNING_STATUS)["startTime"] == RUNNING_STATUS["startTime"]


def test_the_gang_is_shown_with_its_phase():
    native = job({"scheduling": {"gang": "Native"}})
    written = status.compute(native, seen(pod(0), pod(1)), Continue(), NOW)
    assert written["gang"] == {"kind": "PodGroup", "name": "tune-a0", "phase": ""}
