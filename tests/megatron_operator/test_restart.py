"""decide/restart, failure and backoff: which failure restarts the gang and which ends the job, row by row."""

from __future__ import annotations

import pytest

from megatron_operator.api import names
from megatron_operator.core import reconcile
from megatron_operator.core.decide import backoff, failure, restart
from megatron_operator.core.decide.decision import Counters, Fail, Failure, Restart, Undecided
from megatron_operator.core.plan import Plan
from megatron_operator.timestamp import to_text
from tests.support.operator.job_values import NOW, RUNNING_STATUS, beat, failed, job, pod, restarts, seen


def decide(*pods, spec=None, **fields):
    return restart.decide(job(spec), seen(*pods, **fields), NOW)


def policy(**fields):
    return {"failurePolicy": fields}


def test_a_gang_that_runs_is_left_alone():
    assert decide(pod(0), pod(1)) is None


def test_a_failed_pod_restarts_the_gang_after_the_first_backoff():
    assert decide(pod(0), failed(1, 139)) == Restart(
        reason=names.POD_FAILED,
        failure=Failure(
            reason="signal 11",
            pod="tune-a0-worker-0",
            node="node-1",
            container="trainer",
            exit_code=139,
            attempt=0,
            time=NOW - 5,
        ),
        counters=Counters(total=1, counted=1),
        delay_s=10.0,
    )


@pytest.mark.parametrize("code", [1, 134, 137, 139, 143, 255])
def test_codes_that_a_retry_can_help_are_counted(code):
    decision = decide(failed(0, code), pod(1))
    assert isinstance(decision, Restart)
    assert decision.counters == Counters(total=1, counted=1)


@pytest.mark.parametrize("code", [2, 64, 65, 66, 67, 68, 69, 70, 73, 78])
def test_codes_that_no_retry_can_help_fail_the_job(code):
    decision = decide(failed(0, code, reason="BAD_DATA"), failed(1, 1, finished_at=NOW - 50))
    assert isinstance(decision, Fail)
    assert (decision.reason, decision.failure.exit_code) == (names.NON_RETRYABLE_EXIT, code)


@pytest.mark.parametrize("iteration", [None, 7])
def test_gpu_memory_that_runs_out_fails_the_job_with_the_trainers_advice(iteration):
    """The master merely lost its peer, and says so some seconds earlier."""
    record = {"exit_code": 71, "reason": "OUT_OF_DEVICE_MEMORY", "message": "use less", "is_recorded": True}
    decision = decide(failed(0, 1, finished_at=NOW - 8), failed(1, iteration=iteration, **record))
    assert isinstance(decision, Fail)
    assert (decision.reason, decision.failure.reason) == (names.OUT_OF_DEVICE_MEMORY, "OUT_OF_DEVICE_MEMORY")
    assert decision.message.endswith("use less")
    assert ("after iteration 7" in decision.message) == (iteration == 7)


def test_a_rule_may_try_again_after_gpu_memory_ran_out():
    rules = [{"action": "Restart", "onExitCodes": [71]}]
    decision = decide(failed(0, 71, reason="OUT_OF_DEVICE_MEMORY"), pod(1), spec=policy(rules=rules))
    assert isinstance(decision, Restart)


@pytest.mark.parametrize(
    "reason",
    [
        "PreemptionByScheduler",
        "EvictionByEvictionAPI",
        "DeletionByTaintManager",
        "TerminationByKubelet",
    ],
)
def test_a_disrupted_pod_restarts_the_gang_uncounted_and_at_once(reason):
    decision = decide(pod(0, disruption=reason), failed(1, 1))
    assert isinstance(decision, Restart)
    assert (decision.reason, decision.failure.reason, decision.delay_s) == (names.PREEMPTED, reason, 0.0)
    assert decision.counters == Counters(total=1)


def test_a_pod_that_somebody_deletes_is_a_disruption():
    decision = decide(pod(0), pod(1, deleting=True))
    assert isinstance(decision, Restart)
    assert (decision.failure.reason, decision.counters.counted) == ("PodDeleted", 0)


def test_a_pod_that_is_gone_from_a_complete_gang_is_a_disruption():
    decision = decide(pod(0))
    assert isinstance(decision, Restart)
    assert (decision.failure.pod, decision.failure.reason) == ("tune-a0-worker-0", "PodDeleted")
    assert decision.counters == Counters(total=1)


def test_a_pod_that_is_gone_explains_the_failure_of_the_others():
    decision = decide(failed(0, 1))
    assert isinstance(decision, Restart)
    assert decision.failure.reason == "PodDeleted"


def test_a_pod_that_was_never_created_is_no_failure():
    assert decide(pod(0), status={"restarts": {"attempt": 0}}) is None


def test_a_pod_that_is_gone_beside_one_that_succeeded_is_a_disruption():
    """No status says that the gang was complete, yet the trainer's ranks succeed together only."""
    never_seen = {"restarts": {"attempt": 0}}
    decision = decide(pod(1, phase="Succeeded", ready=False), status=never_seen)
    assert isinstance(decision, Restart)
    assert (decision.failure.pod, decision.failure.reason) == ("tune-a0-master-0", "PodDeleted")
    own = {"command": ["prepare"]}
    assert decide(pod(1, phase="Succeeded", ready=False), status=never_seen, spec=own) is None


def test_a_lost_node_is_named_as_the_reason():
    lost = frozenset({"node-1"})
    decision = decide(pod(0), pod(1, deleting=True, disruption="DeletionByTaintManager"), lost_nodes=lost)
    assert isinstance(decision, Restart)
    assert decision.reason == names.NODE_LOST


@pytest.mark.parametrize(
    ("disruption", "reason"),
    [
        ("DeletionByPodGC", names.NODE_LOST),
        ("DeletionByTaintManager", names.PREEMPTED),
        ("PreemptionByScheduler", names.PREEMPTED),
        ("EvictionByEvictionAPI", names.PREEMPTED),
        ("TerminationByKubelet", names.PREEMPTED),
    ],
)
def test_a_node_that_is_not_known_to_be_lost_is_so_where_its_pods_are_collected(disruption, reason):
    """A taint alone may be somebody's order. None is counted."""
    decision = decide(pod(0), pod(1, disruption=disruption))
    assert isinstance(decision, Restart)
    assert (decision.reason, decision.failure.reason) == (reason, disruption)
    assert (decision.counters.counted, decision.delay_s) == (0, 0.0)


@pytest.mark.parametrize(
    "reason", ["UnexpectedAdmissionError", "Evicted", "NodeShutdown", "OutOfcpu", "ContainerStatusUnknown"]
)
def test_a_refused_start_is_not_counted_ten_times_in_a_row(reason):
    tenth = decide(failed(0, 137, reason=reason), pod(1), status=restarts(uncountedInARow=9))
    assert isinstance(tenth, Restart)
    assert tenth.counters == Counters(total=1, in_a_row=10)
    next_one = decide(failed(0, 137, reason=reason), pod(1), status=restarts(uncountedInARow=10))
    assert isinstance(next_one, Restart)
    assert next_one.counters == Counters(total=1, counted=1)


@pytest.mark.parametrize(
    ("message", "counted"),
    [
        ('Usage of EmptyDir volume "shm" exceeds the limit "64Gi". ', 1),
        ('Container trainer exceeded its local ephemeral storage limit "10Gi". ', 1),
        ("Pod ephemeral local storage usage exceeds the total limit of containers 10Gi. ", 1),
        ("The node was low on resource: ephemeral-storage. Container x was using 1Gi, which exceeds its request.", 0),
    ],
)
def test_an_eviction_for_the_pods_own_limit_is_the_jobs_failure_and_not_its_nodes(message, counted):
    spec = policy(nodeExclusion={"afterFailures": 1})
    decision = decide(failed(0, 137, reason="Evicted", message=message), pod(1), spec=spec)
    assert isinstance(decision, Restart)
    assert (decision.counters.counted, decision.failed_nodes) == (counted, ())


def test_a_counted_restart_beyond_the_limit_fails_the_job():
    decision = decide(failed(0, 1, reason="ERROR"), pod(1), status=restarts(total=5, counted=3))
    assert isinstance(decision, Fail)
    assert decision.reason == names.MAX_RESTARTS_EXCEEDED
    assert decision.message == "Pod tune-a0-master-0 failed (ERROR) and failurePolicy.maxRestarts (3) is used up."


@pytest.mark.parametrize(("lived_s", "delay_s"), [(3, 10.0), (19, 10.0), (21, 0.0)])
def test_what_removes_every_pod_at_once_does_not_have_the_gang_made_again_many_times_a_second(lived_s, delay_s):
    """Uncounted as ever: ten seconds are the initial back-off, and so long a gang is given to live."""
    status = {**restarts(total=5, counted=3), "lastRestartTime": to_text(NOW - lived_s)}
    decision = decide(pod(0, deleting=True), pod(1), status=status)
    assert isinstance(decision, Restart)
    assert (decision.delay_s, decision.counters.counted) == (delay_s, 3)


def test_a_disruption_never_uses_up_the_limit():
    decision = decide(pod(0, disruption="PreemptionByScheduler"), pod(1), status=restarts(total=5, counted=3))
    assert isinstance(decision, Restart)
    assert decision.counters == Counters(total=6, counted=3)


def test_a_new_checkpoint_resets_the_count():
    status = restarts(total=3, counted=3, checkpointIteration=500)
    decision = decide(failed(0, 1), pod(1), status=status, progress=beat(checkpoint_iteration=1000))
    assert isinstance(decision, Restart)
    assert decision.counters == Counters(total=4, counted=1, checkpoint_iteration=1000)
    assert decision.delay_s == 0.0, "what came further since the last restart is no failing loop"


def test_without_reset_after_progress_the_count_goes_on():
    status = restarts(total=1, counted=1, checkpointIteration=500)
    spec = policy(resetAfterProgress=False)
    decision = decide(failed(0, 1), pod(1), spec=spec, status=status, progress=beat(checkpoint_iteration=1000))
    assert isinstance(decision, Restart)
    assert decision.counters == Counters(total=2, counted=2, checkpoint_iteration=1000)


def test_the_same_checkpoint_is_no_progress():
    status = restarts(total=1, counted=1, checkpointIteration=500)
    decision = decide(failed(0, 1), pod(1), status=status, progress=beat(checkpoint_iteration=500))
    assert isinstance(decision, Restart)
    assert decision.counters.counted == 2
    assert decision.delay_s == 20.0


def test_killed_for_memory_twice_at_the_same_iteration_fails_the_job():
    before = {**RUNNING_STATUS, "lastFailure": {"reason": "OOMKilled", "iteration": 12, "attempt": 0}}
    status = {**before, "restarts": {"total": 1, "counted": 1, "attempt": 1}}
    dead = failed(0, 137, attempt=1, reason="OOMKilled", iteration=12)
    decision = decide(dead, pod(1, attempt=1), status=status)
    assert isinstance(decision, Fail)
    assert decision.reason == names.OOM_KILLED
    later = failed(0, 137, attempt=1, reason="OOMKilled", iteration=40)
    assert isinstance(decide(later, pod(1, attempt=1), status=status), Restart)


def test_the_first_matching_rule_decides():
    rules = [
        {"action": "FailJob", "onExitCodes": [1], "onReasons": ["GPU_LOST"]},
        {"action": "RestartIgnoreLimit", "onExitCodes": [1, 42]},
        {"action": "FailJob", "onReasons": ["PreemptionByScheduler"]},
    ]
    spec = policy(rules=rules, maxRestarts=0)
    uncounted = decide(failed(0, 42), pod(1), spec=spec)
    assert isinstance(uncounted, Restart)
    assert uncounted.counters == Counters(total=1)
    both_match = decide(failed(0, 1, reason="GPU_LOST"), pod(1), spec=spec)
    assert isinstance(both_match, Fail)
    assert both_match.reason == names.FAILURE_POLICY
    preempted = decide(pod(0, disruption="PreemptionByScheduler"), pod(1), spec=spec)
    assert isinstance(preempted, Fail)


def test_a_rule_can_count_what_is_not_counted_by_default():
    rules = [{"action": "Restart", "onReasons": ["Evicted"]}]
    decision = decide(failed(0, 137, reason="Evicted"), pod(1), spec=policy(rules=rules))
    assert isinstance(decision, Restart)
    assert decision.counters == Counters(total=1, counted=1)


@pytest.mark.parametrize("earlier_s", [0, 2])
@pytest.mark.parametrize("lost_its_peer", [1, 134])
def test_of_two_that_ended_together_the_killed_one_is_the_cause_and_not_its_peer(earlier_s, lost_its_peer):
    decision = decide(failed(0, lost_its_peer, finished_at=NOW - 4 - earlier_s), failed(1, 137, finished_at=NOW - 4))
    assert decision.failure.exit_code == 137


def test_a_pod_that_may_have_lost_its_peer_waits_some_seconds_for_the_cause():
    early = seen(failed(0, 1, finished_at=NOW - 1), pod(1))
    assert restart.decide(job(), early, NOW) == Undecided()
    assert reconcile.plan(job(), early, NOW) == Plan(requeue_s=failure.CAUSE_WITHIN_S - 1)
    assert failure.wake_at(job(), early, NOW) == NOW + failure.CAUSE_WITHIN_S - 1
    late = restart.decide(job(), early, NOW + failure.CAUSE_WITHIN_S - 1)
    assert late.failure.exit_code == 1


@pytest.mark.parametrize(
    "pods",
    [
        (failed(0, 137, finished_at=NOW), pod(1)),
        (failed(0, 1, finished_at=NOW), failed(1, 1, finished_at=NOW)),
        (failed(0, 1, finished_at=NOW), pod(1, phase="Succeeded")),
        (failed(0, 1, finished_at=NOW + 60), pod(1)),
        (failed(0, 64, finished_at=NOW), pod(1)),
    ],
    ids=["killed", "all ended", "the other succeeded", "its clock is ahead", "permanent"],
)
def test_nothing_is_waited_for_where_the_cause_is_known(pods):
    assert isinstance(decide(*pods), Restart | Fail)


def test_a_failure_long_before_the_others_is_the_cause_whatever_ended_them():
    decision = decide(failed(0, 1, finished_at=NOW - 60), failed(1, 137, finished_at=NOW - 4))
    assert decision.failure.exit_code == 1


def test_the_pod_that_failed_first_is_the_cause():
    decision = decide(failed(0, 1, finished_at=NOW - 3), failed(1, 137, finished_at=NOW - 4))
    assert isinstance(decision, Restart)
    assert decision.failure.pod == "tune-a0-worker-0"


@pytest.mark.parametrize(("counted", "delay"), [(1, 10.0), (2, 20.0), (3, 40.0), (7, 600.0), (50, 600.0)])
def test_the_backoff_doubles_up_to_its_maximum(counted, delay):
    assert backoff.delay_s(job().failure_policy, Counters(counted=counted), "failed") == delay


def test_an_attempt_starts_when_the_written_backoff_is_over():
    status = {"restarts": {"attempt": 1, "nextRetryTime": "2027-01-15T08:00:10Z"}}
    assert not backoff.may_start(seen(status=status), NOW + 9)
    assert backoff.may_start(seen(status=status), NOW + 10)
    assert backoff.wake_at(job(), seen(status=status), NOW) == NOW + 10


def test_an_attempt_waits_until_no_pod_of_an_earlier_one_can_run():
    status = {"restarts": {"attempt": 1}}
    terminating = pod(1, deleting=True, grace_ends=NOW - 60)
    assert not backoff.may_start(seen(terminating, status=status), NOW)
    assert backoff.may_start(seen(failed(1, deleting=True), status=status), NOW)
    lost = frozenset({"node-1"})
    assert backoff.may_start(seen(terminating, status=status, lost_nodes=lost), NOW)
    in_grace = pod(1, deleting=True, grace_ends=NOW + 30)
    assert not backoff.may_start(seen(in_grace, status=status, lost_nodes=lost), NOW)


OWN_COMMAND = {"command": ["sh", "-c", "make train"]}
OTHER = {"container": "wait-nfs", "container_kind": "InitContainer"}


@pytest.mark.parametrize("code", [2, 64, 65, 78])
@pytest.mark.parametrize(("spec", "fields"), [(OWN_COMMAND, {}), (None, OTHER)], ids=["command", "container"])
def test_codes_of_other_programs_are_not_read_as_the_trainers(code, spec, fields):
    decision = decide(failed(0, code, reason="Error", **fields), pod(1), spec=spec)
    assert isinstance(decision, Restart)
    assert (decision.counters, decision.failure.reason) == (Counters(total=1, counted=1), f"exit code {code}")


def test_a_command_of_the_users_own_is_believed_where_it_leaves_the_trainers_record():
    decision = decide(failed(0, 65, reason="BAD_DATA", is_recorded=True), pod(1), spec=OWN_COMMAND)
    assert isinstance(decision, Fail)
    assert (decision.reason, decision.failure.reason) == (names.NON_RETRYABLE_EXIT, "BAD_DATA")


def test_rules_judge_the_codes_of_every_container():
    rules = [{"action": "FailJob", "onExitCodes": [2]}]
    decision = decide(failed(0, 2, **OTHER), pod(1), spec=policy(rules=rules))
    assert isinstance(decision, Fail)
    assert (decision.reason, decision.failure.container) == (names.FAILURE_POLICY, "wait-nfs")


def test_an_init_container_cannot_have_lost_a_peer_so_its_failure_is_not_waited_for():
    other = failed(1, 1, finished_at=NOW - 0.5)
    decision = decide(failed(0, 1, finished_at=NOW - 1, **OTHER), other, pod(1, phase="Running", name="x"))
    assert isinstance(decision, Restart)
    assert (decision.failure.container, decision.failure.place) == (
        "wait-nfs",
        "init container wait-nfs of pod tune-a0-master-0 (node node-0)",
    )
