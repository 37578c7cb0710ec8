"""decide/waiting and its deadlines: what keeps a job from starting, since when by our clock, and when that ends it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator.api import names
from megatron_operator.cluster.kubernetes.pod_events import newest_warning
from megatron_operator.core import reconcile
from megatron_operator.core.observe import Gang, read_pod
from megatron_operator.timestamp import to_text
from tests.support.operator.job_values import NOW, RUNNING_STATUS, conditions, job, pod, restarts, seen

DEADLINE = {"runPolicy": {"startupDeadlineSeconds": 300}}
IMAGE = {"waiting": "ImagePullBackOff", "waiting_message": "no such image"}
MOUNT = {"warning": "FailedMount", "warning_message": 'secret "absent" not found'}


def placed(rank=1, **fields):
    """A pod that was placed hours ago, by its node's clock, and has not started."""
    return pod(rank, phase="Pending", **{"scheduled_at": NOW - 7200, **fields})


def message_of(plan, type_):
    return next(each["message"] for each in plan.status["conditions"] if each["type"] == type_)


def waits(**stored):
    return {**RUNNING_STATUS, "waiting": stored}


@pytest.mark.parametrize(
    ("fields", "reason", "cause"),
    [
        (IMAGE, "ImagePullBackOff", "Image"),
        ({"waiting": "CreateContainerConfigError"}, "CreateContainerConfigError", "CreateContainerConfigError"),
        ({"waiting": "CrashLoopBackOff"}, "CrashLoopBackOff", "CrashLoopBackOff"),
        (MOUNT, "FailedMount", "Volume"),
        ({"warning": "FailedAttachVolume"}, "FailedAttachVolume", "Volume"),
        ({"warning": "FailedCreatePodSandBox"}, "FailedCreatePodSandBox", "FailedCreatePodSandBox"),
        ({"warning": "NetworkNotReady"}, "NetworkNotReady", "NetworkNotReady"),
    ],
)
def test_what_keeps_a_placed_pod_from_starting_stalls_the_job_from_now_on_and_then_fails_it(fields, reason, cause):
    plan = reconcile.plan(job(DEADLINE), seen(pod(0), placed(**fields)), NOW)
    assert conditions(plan.status)["Stalled"] == ("True", reason)
    assert plan.status["waiting"] == {"startupSince": to_text(NOW), "pod": "tune-a0-worker-0", "cause": cause}
    assert [event.reason for event in plan.events] == ["JobStalled"]
    late = reconcile.plan(job(DEADLINE), seen(pod(0), placed(**fields), status=plan.status), NOW + 300)
    assert conditions(late.status)["Failed"] == ("True", "StartupFailed")
    assert (late.status["lastFailure"]["reason"], "waiting" in late.status) == (reason, False)


def test_one_failed_pull_after_a_long_fetch_is_not_the_end():
    """The deadline counts from when the wait began: not from scheduling, and not from a wait that is over."""
    over = waits(startupSince=to_text(NOW - 9999), pod="tune-a0-worker-0", cause="Volume")
    plan = reconcile.plan(job(DEADLINE), seen(pod(0), placed(**IMAGE), status=over), NOW)
    assert (conditions(plan.status)["Stalled"], plan.requeue_s) == (("True", "ImagePullBackOff"), 300.0)
    going_on = reconcile.plan(job(DEADLINE), seen(pod(0), placed(), status=over), NOW)
    assert ("waiting" in going_on.status, "Stalled" in conditions(going_on.status)) == (False, False)


@pytest.mark.parametrize("words", ["SignatureValidationFailed", "RegistryUnavailable", "SomeWordOfALaterKubelet"])
def test_a_pull_that_fails_for_a_reason_of_its_own_is_one_wait_with_its_back_off(words):
    """The kubelet shows the two in turns: the deadline must not begin again with each."""
    since = waits(startupSince=to_text(NOW - 200), pod="tune-a0-worker-0", cause="Image")
    plan = reconcile.plan(job(DEADLINE), seen(pod(0), placed(waiting=words), status=since), NOW)
    assert (conditions(plan.status)["Stalled"], plan.status["waiting"]) == (("True", words), since["waiting"])
    late = reconcile.plan(job(DEADLINE), seen(pod(0), placed(waiting=words), status=since), NOW + 100)
    assert conditions(late.status)["Failed"] == ("True", "StartupFailed")


def test_a_wait_that_is_remembered_goes_on_though_its_words_and_other_pods_change():
    since = waits(startupSince=to_text(NOW - 200), pod="tune-a0-worker-0", cause="Image")
    pods = [placed(0, **MOUNT), placed(1, waiting="ErrImagePull")]
    plan = reconcile.plan(job(DEADLINE), seen(*pods, status=since), NOW)
    assert plan.status["waiting"] == since["waiting"]
    assert conditions(plan.status)["Stalled"] == ("True", "ErrImagePull")


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_node_whose_clock_is_an_hour_off_changes_no_deadline(hours):
    skewed = placed(scheduled_at=NOW + 3600 * hours, **IMAGE)
    plan = reconcile.plan(job(DEADLINE), seen(pod(0), skewed), NOW)
    assert plan.requeue_s == 300.0
    quiet = reconcile.plan(job(DEADLINE), seen(pod(0), replace(skewed, waiting=None)), NOW)
    assert 3.0 <= quiet.requeue_s <= 30.0


def test_an_initializer_may_fetch_indefinitely_and_another_init_container_may_not_hang():
    fetch = {"name": "fetch", "storageUri": "hf://a/b", "targetPath": "/checkpoints/model"}
    spec = {**DEADLINE, "initializers": [fetch]}
    plan = reconcile.plan(job(spec), seen(placed(0, initializing="fetch"), pod(1)), NOW)
    assert ("waiting" in plan.status, "Stalled" in conditions(plan.status)) == (False, False)
    assert message_of(plan, "PodsReady") == "Pod tune-a0-master-0: init container fetch is running"
    foreign = seen(placed(0, initializing="wait-nfs"), pod(1))
    plan = reconcile.plan(job(spec), foreign, NOW)
    assert ("Stalled" in conditions(plan.status), plan.status["waiting"]["cause"]) == (False, "InitContainer wait-nfs")
    assert "init container wait-nfs has not ended" in message_of(plan, "PodsReady")
    late = reconcile.plan(job(spec), replace(foreign, status=plan.status), NOW + 300)
    assert conditions(late.status)["Failed"] == ("True", "StartupFailed")


def test_a_sidecar_whose_probe_fails_in_a_start_is_no_trouble_until_it_goes_on_for_too_long():
    probe = {"warning": "Unhealthy", "warning_message": "Startup probe failed: connection refused"}
    starts = seen(pod(0), placed(initializing="istio-proxy", **probe))
    plan = reconcile.plan(job(DEADLINE), starts, NOW)
    assert ("Stalled" in conditions(plan.status), plan.status["waiting"]["cause"]) == (
        False,
        "InitContainer istio-proxy",
    )
    assert message_of(plan, "PodsReady").endswith("istio-proxy has not ended. Startup probe failed: connection refused")
    late = reconcile.plan(job(DEADLINE), replace(starts, status=plan.status), NOW + 300)
    assert conditions(late.status)["Failed"] == ("True", "StartupFailed")
    running = reconcile.plan(job(DEADLINE), seen(pod(0), placed(**probe)), NOW)
    assert ("waiting" in running.status, "Stalled" in conditions(running.status)) == (False, False)


def test_a_sidecar_that_crashes_beside_a_running_trainer_is_said_and_ends_nothing():
    crashing = pod(1, waiting="CrashLoopBackOff", waiting_message="proxy: back-off", ready=False)
    plan = reconcile.plan(job(DEADLINE), seen(pod(0), crashing), NOW + 9999)
    assert "Stalled" not in conditions(plan.status)
    assert message_of(plan, "PodsReady") == "Pod tune-a0-worker-0: CrashLoopBackOff proxy: back-off"


TIMEOUT = {"runPolicy": {"schedulingTimeoutSeconds": 600}}
UNPLACED = {"phase": "Pending", "scheduled_at": None, "node": ""}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"unschedulable": "0/3 nodes have 8 free GPUs"}, "0/3 nodes have 8 free GPUs"),
        ({}, "no scheduler has placed it"),
        ({"gated": True}, "scheduling gate"),
    ],
)
def test_a_wait_for_a_place_ends_the_job_only_where_it_has_a_deadline(fields, why):
    unplaced = pod(1, **{**UNPLACED, **fields})
    patient = reconcile.plan(job(), seen(pod(0), unplaced), NOW)
    assert "waiting" not in patient.status
    plan = reconcile.plan(job(TIMEOUT), seen(pod(0), unplaced), NOW)
    assert (plan.status["waiting"], plan.requeue_s) == ({"schedulingSince": to_text(NOW)}, 600.0)
    late = reconcile.plan(job(TIMEOUT), seen(pod(0), unplaced, status=plan.status), NOW + 600)
    assert conditions(late.status)["Failed"] == ("True", "SchedulingTimeout")
    assert why in message_of(late, "Failed")


def test_the_queue_counts_as_a_wait_for_a_place():
    queued = replace(job(TIMEOUT, labels={names.KUEUE_QUEUE: "team"}), kueue_mode="External")
    plan = reconcile.plan(queued, seen(status={}), NOW)
    late = reconcile.plan(queued, seen(status=plan.status), NOW + 600)
    assert conditions(late.status)["Failed"] == ("True", "SchedulingTimeout")
    volcano = job({**TIMEOUT, "scheduling": {"gang": "Volcano"}})
    group = Gang(name="tune-a0", phase="Pending")
    plan = reconcile.plan(volcano, seen(status={}, gang=group), NOW)
    late = reconcile.plan(volcano, seen(status=plan.status, gang=group), NOW + 600)
    assert conditions(late.status)["Failed"] == ("True", "SchedulingTimeout")


def test_a_pod_that_cannot_pull_its_image_stalls_the_job_then_fails_it():
    stuck = pod(1, phase="Pending", waiting="ImagePullBackOff", waiting_message="no such image")
    spec = {"runPolicy": {"startupDeadlineSeconds": 300}}
    before = reconcile.plan(job(spec), seen(pod(0), stuck, status=restarts()), NOW)
    assert conditions(before.status)["Stalled"] == ("True", "ImagePullBackOff")
    assert before.requeue_s == 300.0
    plan = reconcile.plan(job(spec), seen(pod(0), stuck, status=before.status), NOW + 300)
    assert conditions(plan.status)["Failed"] == ("True", "StartupFailed")
    assert plan.status["lastFailure"]["reason"] == "ImagePullBackOff"


def test_a_pod_that_waits_for_a_place_is_not_stuck():
    waiting = pod(1, phase="Pending", scheduled_at=None, unschedulable="0/3 nodes have 8 free GPUs")
    plan = reconcile.plan(job(), seen(pod(0), waiting), NOW + 9999)
    assert "Failed" not in conditions(plan.status)
    ready = next(each for each in plan.status["conditions"] if each["type"] == "PodsReady")
    assert ready["message"] == "Pod tune-a0-worker-0: 0/3 nodes have 8 free GPUs"


def test_a_pod_of_an_earlier_attempt_that_never_ends_is_named():
    again = {"restarts": {"attempt": 1}}
    ending = pod(1, deleting=True, grace_ends=NOW - 5, attempt=0)
    plan = reconcile.plan(job(), seen(ending, status=again), NOW)
    assert "tune-a0-worker-0 of attempt 0 has not ended" in message_of(plan, "PodsReady")
    assert "Stalled" not in conditions(plan.status)
    late = reconcile.plan(job(), seen(ending, status=again), NOW + 60)
    assert conditions(late.status)["Stalled"] == ("True", "PodTerminating")


def raw(spec=None, **status):
    labels = {names.LABEL_JOB_NAME: "tune"}
    return {"metadata": {"name": "tune-a0-master-0", "labels": labels}, "spec": spec or {}, "status": status}


NATIVE = {"initContainers": [{"name": "proxy", "restartPolicy": "Always"}, {"name": "wait"}]}


@pytest.mark.parametrize(
    ("reason", "message", "told"),
    [
        ("Unschedulable", "0/3 nodes are available", "0/3 nodes are available"),
        ("SchedulerError", "binding volumes: context deadline exceeded", "binding volumes: context deadline exceeded"),
        ("Undetermined", "3/2 tasks in gang unschedulable", "3/2 tasks in gang unschedulable"),
        ("SchedulerError", "", "SchedulerError"),
        ("SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates", None),
    ],
)
def test_whatever_reason_a_scheduler_has_for_not_placing_a_pod_its_words_are_told(reason, message, told):
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    found = read_pod(raw(phase="Pending", conditions=[condition]))
    assert found.unschedulable == told


def test_a_native_sidecar_crashing_before_the_trainer_is_reported_between_crashes_too():
    crashed = {"terminated": {"exitCode": 7}}
    for state in ({"running": {}}, {"terminated": {"exitCode": 7}}, {"waiting": {"reason": "CrashLoopBackOff"}}):
        status = {"name": "proxy", "started": False, "state": state, "lastState": crashed}
        assert read_pod(raw(NATIVE, phase="Pending", initContainerStatuses=[status])).waiting == "CrashLoopBackOff"
    ready = {"name": "proxy", "started": True, "state": {"running": {}}, "lastState": crashed}
    waits_for_nfs = {"name": "wait", "state": {"running": {}}}
    seen_pod = read_pod(raw(NATIVE, phase="Pending", initContainerStatuses=[ready, waits_for_nfs]))
    assert (seen_pod.waiting, seen_pod.initializing) == (None, "wait")


def test_a_trainer_that_runs_makes_the_pod_run_though_a_sidecar_cannot_be_pulled():
    statuses = [
        {"name": "trainer", "state": {"running": {}}},
        {"name": "exporter", "state": {"waiting": {"reason": "ErrImagePull", "message": "404"}}},
    ]
    found = read_pod(raw(phase="Pending", containerStatuses=statuses))
    assert (found.phase, found.waiting, found.waiting_message) == ("Running", "ErrImagePull", "exporter: 404")


def event(reason, version, type_="Warning", minute=0, by="kubelet"):
    time = f"2027-01-15T08:{minute:02d}:00Z"
    metadata, source = {"resourceVersion": str(version)}, {"component": by}
    about = {"reason": reason, "message": "m", "source": source}
    return {"type": type_, "lastTimestamp": time, "metadata": metadata, **about}


def test_the_newest_event_says_what_a_pod_waits_for_unless_it_tells_of_progress():
    mount, pulled = event("FailedMount", 5), event("Pulled", 6, "Normal")
    assert newest_warning([event("Scheduled", 1, "Normal"), mount]) == ("FailedMount", "m")
    assert newest_warning([pulled, mount]) == ("", "")
    assert newest_warning([pulled, event("FailedAttachVolume", 7, by="attachdetach-controller")])[0] != ""
    assert newest_warning([]) == ("", "")
    assert newest_warning([{**event("", 1), "metadata": {}, "reason": 3, "message": {}}]) == ("", "")


@pytest.mark.parametrize(
    "other",
    [
        event("SandboxChanged", 6, "Normal"),
        event("AddedInterface", 6, "Normal"),
        event("BackOff", 6, "Normal"),
        event("DNSConfigForming", 6),
        event("PolicyViolation", 6, by="kyverno-scan"),
        event("FailedToRetrieveImagePullSecret", 6),
    ],
    ids=lambda each: each["reason"],
)
def test_what_each_try_says_again_is_no_progress_and_a_harmless_warning_no_trouble(other):
    """Else the wait would begin again with every try, and its deadline would never come."""
    assert newest_warning([event("FailedCreatePodSandBox", 5), other]) == ("FailedCreatePodSandBox", "m")
    assert newest_warning([event("Pulling", 5, "Normal"), other]) == ("", "")


def test_events_are_ordered_by_the_server_and_not_by_the_clocks_of_nodes():
    scheduled, failed = event("Scheduled", 5, "Normal", minute=59), event("FailedMount", 6, minute=0)
    assert newest_warning([scheduled, failed]) == ("FailedMount", "m")


def test_a_scheduling_gate_of_somebody_else_is_named_and_not_taken_for_a_queue():
    held = [pod(rank, phase="Pending", gated=True, gate="example.com/wait", scheduled_at=None) for rank in (0, 1)]
    admitted = {each["type"]: each for each in reconcile.plan(job(), seen(*held), NOW).status["conditions"]}["Admitted"]
    assert (admitted["status"], admitted["reason"]) == ("False", "SchedulingGated")
    assert "scheduling gate example.com/wait holds it back" in admitted["message"]
