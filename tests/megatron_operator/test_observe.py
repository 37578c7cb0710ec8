"""observe: raw API objects as values."""

from __future__ import annotations

import json

import pytest

from megatron_operator.api import names
from megatron_operator.core import reconcile
from megatron_operator.core.observe import Gang, Pod, Seen, observe, read_gang, read_pod
from megatron_operator.guard import Guard
from tests.support.operator.job_values import NOW, job

LABELS = {
    "megatrontrain.dev/job-name": "tune",
    "megatrontrain.dev/replica-type": "worker",
    "megatrontrain.dev/replica-index": "2",
    "megatrontrain.dev/restart-attempt": "3",
}
OWNER = {"uid": "uid-1", "controller": True}


def raw_pod(status=None, *, spec=None, **metadata):
    header = {"name": "tune-a3-worker-2", "uid": "u", "labels": LABELS, "ownerReferences": [OWNER]}
    return {"metadata": {**header, **metadata}, "spec": spec or {}, "status": status or {}}


def ended(name, code, **state):
    return {"name": name, "state": {"terminated": {"exitCode": code, **state}}}


def test_a_fresh_pod_is_pending():
    assert read_pod(raw_pod()) == Pod(name="tune-a3-worker-2", uid="u", attempt=3, role="worker", index=2)


def test_the_trainers_own_record_explains_its_end():
    record = {"exitCode": 65, "reason": "BAD_DATA", "rank": 9, "iteration": 12, "message": "row 7: no messages"}
    state = ended("trainer", 65, reason="Error", message=json.dumps(record), finishedAt="2027-01-15T08:00:00Z")
    pod = read_pod(raw_pod({"phase": "Failed", "containerStatuses": [state]}, spec={"nodeName": "n1"}))
    assert (pod.exit_code, pod.reason, pod.message, pod.iteration) == (65, "BAD_DATA", "row 7: no messages", 12)
    assert pod.rank == 9
    assert (pod.finished_at, pod.node, pod.is_finished) == (1_800_000_000.0, "n1", True)


def test_the_kubelets_reason_goes_before_the_trainers():
    state = ended("trainer", 137, reason="OOMKilled", message=json.dumps({"reason": "ERROR", "iteration": 4}))
    pod = read_pod(raw_pod({"phase": "Failed", "containerStatuses": [state]}))
    assert (pod.reason, pod.iteration) == ("OOMKilled", 4)


def test_a_reason_of_the_pod_itself_goes_first():
    status = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}
    pod = read_pod(raw_pod({**status, "containerStatuses": [ended("trainer", 137, reason="Error")]}))
    assert (pod.reason, pod.exit_code, pod.message) == ("Evicted", 137, "low on memory")


EVICTED = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
OWN = {"containers": [{"name": "trainer", "command": ["./train.sh"]}]}
LAUNCHED = {"containers": [{"name": "trainer", "command": ["python", "-m", "megatron_trainer", "sft"]}]}
ENDED_AT = "2027-01-15T08:00:00Z"


@pytest.mark.parametrize(
    ("spec", "status", "phase"),
    [
        (OWN, EVICTED, "Failed"),
        (OWN, {"phase": "Failed", "conditions": [("DisruptionTarget", "2027-01-15T07:59:58Z")]}, "Failed"),
        (OWN, {"phase": "Succeeded", "conditions": [("DisruptionTarget", "2027-01-15T07:59:58Z")]}, "Failed"),
        (OWN, {**EVICTED, "conditions": [("DisruptionTarget", "2027-01-15T08:00:01Z")]}, "Succeeded"),
        (OWN, {"phase": "Failed"}, "Succeeded"),
        (LAUNCHED, EVICTED, "Succeeded"),
        (LAUNCHED, {"phase": "Failed", "conditions": [("DisruptionTarget", "2027-01-15T07:59:58Z")]}, "Succeeded"),
    ],
    ids=["evicted", "disrupted", "preempted", "ended before", "a sidecar failed", "our launcher", "and disrupted"],
)
def test_a_program_that_answers_its_eviction_with_zero_has_not_succeeded(spec, status, phase):
    """Its code says only that it ended in good order; our launcher has another one for that."""
    conditions = [
        {"type": type_, "status": "True", "reason": "TerminationByKubelet", "lastTransitionTime": at}
        for type_, at in status.get("conditions", ())
    ]
    statuses = [ended("trainer", 0, reason="Completed", finishedAt=ENDED_AT)]
    pod = read_pod(raw_pod({**status, "conditions": conditions, "containerStatuses": statuses}, spec=spec))
    assert pod.phase == phase


def test_the_words_of_an_eviction_go_before_those_of_the_program_that_it_ended():
    state = ended("trainer", 143, message=json.dumps({"reason": "PREEMPTED", "message": "saved", "iteration": 7}))
    pod = read_pod(raw_pod({**EVICTED, "containerStatuses": [state]}))
    assert (pod.reason, pod.message, pod.iteration) == ("Evicted", EVICTED["message"], 7)


def test_a_failed_initializer_explains_the_pod():
    status = {"phase": "Failed", "initContainerStatuses": [ended("fetch", 7, reason="Error", message="404")]}
    pod = read_pod(raw_pod({**status, "containerStatuses": [{"name": "trainer", "state": {"waiting": {}}}]}))
    assert (pod.exit_code, pod.message) == (7, "404")


def test_the_trainer_speaks_before_a_sidecar():
    states = [ended("sidecar", 3, reason="Error"), ended("trainer", 1, reason="Error")]
    assert read_pod(raw_pod({"phase": "Failed", "containerStatuses": states})).exit_code == 1


def test_text_that_is_no_record_is_the_message():
    state = ended("trainer", 1, reason="Error", message="Traceback (most recent call last)")
    pod = read_pod(raw_pod({"phase": "Failed", "containerStatuses": [state]}))
    assert (pod.message, pod.iteration) == ("Traceback (most recent call last)", None)


def test_a_message_is_cut_at_a_kilobyte():
    state = ended("trainer", 1, message="x" * 5000)
    assert len(read_pod(raw_pod({"phase": "Failed", "containerStatuses": [state]})).message) == 1024


def test_why_a_container_waits_is_seen_unless_it_is_just_starting():
    def waiting(reason):
        state = {"name": "trainer", "state": {"waiting": {"reason": reason, "message": "m"}}}
        return read_pod(raw_pod({"containerStatuses": [state]})).waiting

    assert [waiting(reason) for reason in ("ContainerCreating", "PodInitializing", "ErrImagePull")] == [
        None,
        None,
        "ErrImagePull",
    ]


def test_conditions_become_facts():
    conditions = [
        {"type": "Ready", "status": "True"},
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2027-01-15T08:00:00Z"},
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"},
    ]
    pod = read_pod(raw_pod({"phase": "Running", "conditions": conditions}))
    assert (pod.ready, pod.scheduled_at, pod.disruption) == (True, 1_800_000_000.0, "PreemptionByScheduler")
    unplaced = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node"}]
    assert read_pod(raw_pod({"conditions": unplaced})).unschedulable == "no node"


def test_deletion_and_gates_are_seen():
    gated = raw_pod(spec={"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]})
    assert (read_pod(gated).gated, read_pod(gated).in_queue) == (True, False)
    gates = [{"name": "example.com/wait"}, {"name": "kueue.x-k8s.io/admission"}]
    assert read_pod(raw_pod(spec={"schedulingGates": gates})).gate == "kueue.x-k8s.io/admission"
    assert read_pod(raw_pod(labels={**LABELS, "kueue.x-k8s.io/managed": "true"})).in_queue
    pod = read_pod(raw_pod(deletionTimestamp="2027-01-15T08:00:00Z"))
    assert (pod.deleting, pod.grace_ends) == (True, 1_800_000_000.0)


def test_pods_and_services_of_another_owner_are_left_out():
    stranger = raw_pod(ownerReferences=[{"uid": "other", "controller": True}])
    nobodys = raw_pod(ownerReferences=None)
    service = {"metadata": stranger["metadata"], "spec": {"selector": {"a": "b"}}}
    seen = observe(job_uid="uid-1", status=None, pods=[stranger, nobodys], services=[service])
    assert (seen.pods, seen.service_selector, seen.status) == ((), None, {})


def test_pods_are_seen_in_rank_order_by_attempt():
    order = ["tune-a1-master-0", "tune-a1-worker-2", "tune-a1-worker-10"]
    pods = [raw_pod(name=name) for name in (*reversed(order), "tune-a0-master-0")]
    seen = observe(job_uid="uid-1", status={"restarts": {"attempt": 1}}, pods=pods)
    assert [pod.name for pod in seen.current] == order
    assert [pod.name for pod in seen.stale] == ["tune-a0-master-0"]


@pytest.mark.parametrize(
    "name", ["innocent", "tune-a3", "other-a3-master-0", "tune-aoops-master-0", "tune-a03-master-0", "tune-a3-master-1"]
)
def test_a_pod_that_merely_bears_our_labels_is_not_read_and_the_others_are(name):
    guard_counts = []
    pods = [raw_pod(name=name), raw_pod(name="tune-a3-master-0")]
    seen = observe(job_uid="uid-1", status=None, pods=pods, guard=Guard(count=guard_counts.append))
    assert [pod.name for pod in seen.pods] == ["tune-a3-master-0"]
    assert guard_counts == ["pods"]


@pytest.mark.parametrize("label", ["restart-attempt", "replica-index", "replica-type"])
@pytest.mark.parametrize("value", ["oops", "", "-1", "9" * 63])
def test_edited_labels_change_nothing(label, value):
    pod = read_pod(raw_pod(labels={**LABELS, f"megatrontrain.dev/{label}": value}))
    assert (pod.attempt, pod.role, pod.index) == (3, "worker", 2)


LOG_LINE = '{"level": "error", "message": {"text": "CUDA error", "code": 700}}'


@pytest.mark.parametrize(
    "message",
    [
        LOG_LINE,
        '{"message": 7}',
        '{"reason": {"a": 1}, "iteration": 3}',
        '{"reason": "ERROR", "iteration": NaN}',
        "[" * 4096,
        '{"reason":' * 2000,
        "[1, 2]",
        '{"reason": "ERROR", "iteration": ' + "9" * 5000 + "}",
    ],
)
def test_a_termination_message_that_is_no_record_is_text(message):
    state = ended("trainer", 1, reason="Error", message=message)
    pod = read_pod(raw_pod({"phase": "Failed", "containerStatuses": [state]}))
    assert (pod.reason, pod.message, pod.iteration) == ("Error", message[:1024], None)


@pytest.mark.parametrize("iteration", [True, 1.5, -1, 2**53 + 1, "12", None, [1]])
def test_an_iteration_or_rank_that_is_no_count_is_left_out_and_the_rest_taken(iteration):
    record = json.dumps({"reason": "ERROR", "message": {"deep": []}, "iteration": iteration, "rank": iteration})
    pod = read_pod(raw_pod({"phase": "Failed", "containerStatuses": [ended("trainer", 1, message=record)]}))
    assert (pod.reason, pod.iteration, pod.rank) == ("ERROR", None, None)


@pytest.mark.parametrize(
    ("host", "stack", "taken"),
    [
        ("node-7", "f (a.py:1)", ("node-7", "f (a.py:1)")),
        ("h" * 999, "s" * 9999, ("h" * 253, "s" * 512)),
        (7, ["f"], ("", "")),
        (None, {"deep": []}, ("", "")),
    ],
)
def test_host_and_stack_are_taken_as_text_within_bounds_or_not_at_all(host, stack, taken):
    record = json.dumps({"reason": "ERROR", "host": host, "stack": stack})
    pod = read_pod(raw_pod({"phase": "Failed", "containerStatuses": [ended("trainer", 1, message=record)]}))
    assert (pod.reason, pod.host, pod.stack) == ("ERROR", *taken)


def test_a_pod_whose_times_are_in_no_calendar_is_read_nonetheless():
    """An API server stores year 0; an unreadable pod would be seen as it was before, and its end never."""
    state = ended("trainer", 1, finishedAt="0000-12-31T23:00:00Z")
    pod = read_pod(raw_pod({"phase": "Failed", "containerStatuses": [state]}, creationTimestamp="0000-01-01T00:00:00Z"))
    assert (pod.phase, pod.finished_at, pod.created_at) == ("Failed", None, 0.0)


def test_text_of_a_pod_is_readable_wherever_it_is_shown():
    record = json.dumps({"reason": "ERROR", "message": "a\ud800\x1b[31mb"})
    pod = read_pod(raw_pod({"phase": "Failed", "containerStatuses": [ended("trainer", 1, message=record)]}))
    assert pod.message == "a? [31mb"


def test_a_pod_group_that_cannot_exist_differs_from_one_not_created_yet():
    assert read_gang(None, served=True) is None
    assert read_gang(None, served=False) == Gang(served=False)
    group = {"metadata": {"name": "tune-a0"}, "status": {"phase": "Inqueue"}}
    assert read_gang(group, served=True) == Gang(name="tune-a0", phase="Inqueue")
    newest = {"lastTransitionTime": "2026-11-24T12:00:05Z", "message": "the newest"}
    group["status"]["conditions"] = [newest, {"lastTransitionTime": "2026-11-24T12:00:00Z", "message": "an older one"}]
    assert read_gang(group, served=True).message == "the newest"
    group["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    assert read_gang(group, served=True).deleting


RUNS = {"name": "istio-proxy", "state": {"running": {"startedAt": "2027-01-15T08:00:00Z"}}}
WAITS = {"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}


@pytest.mark.parametrize(("code", "phase"), [(0, "Succeeded"), (1, "Failed")])
def test_the_end_of_the_trainer_is_the_end_of_the_pod_though_a_sidecar_lives_on(code, phase):
    pod = read_pod(raw_pod({"phase": "Running", "containerStatuses": [RUNS, ended("trainer", code)]}))
    assert (pod.phase, pod.exit_code, pod.is_finished, pod.is_outlived) == (phase, code, True, True)
    pod = read_pod(raw_pod({"phase": phase, "containerStatuses": [ended("istio-proxy", 0), ended("trainer", code)]}))
    assert (pod.phase, pod.is_outlived) == (phase, False)


def test_a_sidecar_that_fails_beside_the_trainer_ends_nothing():
    running = {"name": "trainer", "state": {"running": {}}}
    pod = read_pod(raw_pod({"phase": "Running", "containerStatuses": [ended("exporter", 2), running]}))
    assert (pod.phase, pod.exit_code, pod.finished_at) == ("Running", None, None)
    status = {"phase": "Failed", "containerStatuses": [ended("exporter", 2), ended("trainer", 0)]}
    assert (read_pod(raw_pod(status)).phase, read_pod(raw_pod(status)).exit_code) == ("Succeeded", 0)


def test_the_container_that_ended_the_pod_is_named_and_only_the_trainers_words_are_a_record():
    record = json.dumps({"exitCode": 64, "reason": "BAD_ARGUMENTS", "message": "m"})
    failed = ended("wait-nfs", 64, reason="Error", message=record)
    native = {"name": "proxy", "restartPolicy": "Always"}
    status = {"phase": "Failed", "initContainerStatuses": [ended("proxy", 137), failed], "containerStatuses": [WAITS]}
    pod = read_pod(raw_pod(status, spec={"initContainers": [native, {"name": "wait-nfs"}]}))
    assert (pod.container, pod.container_kind, pod.exit_code) == ("wait-nfs", "InitContainer", 64)
    assert (pod.reason, pod.message, pod.is_recorded) == ("Error", record, False)
    pod = read_pod(raw_pod({"phase": "Failed", "containerStatuses": [WAITS, ended("exporter", 3)]}))
    assert (pod.container, pod.container_kind, pod.exit_code) == ("exporter", "Sidecar", 3)
    pod = read_pod(raw_pod({"phase": "Failed", "containerStatuses": [ended("trainer", 64, message=record)]}))
    assert (pod.container, pod.container_kind, pod.is_recorded) == ("trainer", "Trainer", True)


@pytest.mark.parametrize(
    "labels", [{}, {**LABELS, names.LABEL_JOB_NAME: "other"}, {**LABELS, names.LABEL_RESTART_ATTEMPT: "7"}]
)
def test_a_pod_is_of_the_job_that_owns_it_whatever_its_labels_say(labels):
    owner = {**OWNER, "apiVersion": names.API_VERSION, "kind": names.KIND, "name": "tune"}
    pod = read_pod(raw_pod(ownerReferences=[owner], labels=labels))
    assert (pod.attempt, pod.role, pod.index, pod.is_mislabeled) == (3, "worker", 2, True)
    plan = reconcile.plan(job(), Seen(pods=(pod,), status={"restarts": {"attempt": 3}}), NOW)
    assert [patch.body["metadata"] for patch in plan.patch] == [{"uid": "u", "labels": LABELS}]
    assert "PodRelabeled" in [event.reason for event in plan.events]


RULES = [{"action": "Restart", "exitCodes": {"operator": "In", "values": [137]}}]
RESTARTABLE = {"containers": [{"name": "trainer", "restartPolicy": "Never", "restartPolicyRules": RULES}]}


def restartable(phase, code, *, last=None, waits=None, **spec):
    states = {"terminated": {"exitCode": code, "reason": "OOMKilled"}} if code is not None else {"running": {}}
    last_state = {} if last is None else {"lastState": {"terminated": {"exitCode": last, "reason": "Error"}}}
    state = {"waiting": {"reason": waits}} if waits else states
    status = {"name": "trainer", "state": state, "restartCount": 1 if last else 0, **last_state}
    return read_pod(raw_pod({"phase": phase, "containerStatuses": [status]}, spec={**RESTARTABLE, **spec}))


def test_a_container_that_is_about_to_start_again_has_not_failed_its_pod():
    down = restartable("Running", 137)
    assert (down.phase, down.is_down, down.exit_code, down.num_container_restarts) == ("Running", True, None, 0)
    assert (down.last_end.exit_code, down.last_end.reason) == (137, "OOMKilled")
    backs_off = restartable("Running", None, last=137, waits="CrashLoopBackOff")
    assert (backs_off.phase, backs_off.is_down, backs_off.num_container_restarts) == ("Running", True, 1)
    again = restartable("Running", None, last=139)
    assert (again.phase, again.is_down, again.exit_code, again.last_end.exit_code) == ("Running", False, None, 139)


@pytest.mark.parametrize(
    ("phase", "code", "spec"),
    [("Running", 65, {}), ("Failed", 137, {}), ("Running", 137, {"containers": [{"name": "trainer"}]})],
    ids=["another code", "a kubelet without such rules", "a server that dropped the rules"],
)
def test_a_container_that_does_not_start_again_has_failed_its_pod(phase, code, spec):
    pod = restartable(phase, code, **spec)
    assert (pod.phase, pod.is_down, pod.exit_code) == ("Failed", False, code)


NOTES_ATTEMPTS = {"containers": [{"name": "trainer", "env": [{"name": "MTJ_ATTEMPT_FILE", "value": "/run/attempt"}]}]}


def test_a_launcher_that_ended_for_good_is_read_as_its_rank():
    record = json.dumps({"exitCode": 137, "reason": "signal 9", "rank": 1})
    status = {"phase": "Failed", "containerStatuses": [ended("trainer", 201, message=record)]}
    pod = read_pod(raw_pod(status, spec=NOTES_ATTEMPTS))
    assert (pod.exit_code, pod.is_recorded, pod.rank) == (137, True, 1)
    own = json.dumps({"exitCode": 201, "reason": "exit code 201"})
    status = {"phase": "Failed", "containerStatuses": [ended("trainer", 201, message=own)]}
    pod = read_pod(raw_pod(status, spec=NOTES_ATTEMPTS))
    assert (pod.exit_code, pod.is_recorded) == (201, True)


def test_a_program_of_the_users_has_codes_of_its_own():
    status = {"phase": "Failed", "containerStatuses": [ended("trainer", 201, message="the log")]}
    of_others = {"containers": [{"name": "trainer", "command": ["sh"], "env": [{"name": "A", "value": "b"}]}]}
    assert read_pod(raw_pod(status, spec=of_others)).exit_code == 201
    assert read_pod(raw_pod(status, spec=NOTES_ATTEMPTS)).exit_code == 137, "a launcher without a record"


def test_a_launcher_that_gave_up_waiting_is_read_as_the_container_before():
    """Its own record says only that there was one; how that ended, the kubelet remembers."""
    record = json.dumps({"exitCode": 137, "reason": "CONTAINER_ENDED", "rank": 0})
    last = {"exitCode": 139, "reason": "OOMKilled", "finishedAt": "2027-01-15T08:00:00Z"}
    trainer = {**ended("trainer", 201, reason="Error", message=record), "lastState": {"terminated": last}}
    pod = read_pod(raw_pod({"phase": "Failed", "containerStatuses": [trainer]}, spec=NOTES_ATTEMPTS))
    assert (pod.phase, pod.exit_code, pod.reason, pod.finished_at) == ("Failed", 139, "OOMKilled", 1_800_000_000.0)
    trainer.pop("lastState")
    pod = read_pod(raw_pod({"phase": "Failed", "containerStatuses": [trainer]}, spec=NOTES_ATTEMPTS))
    assert (pod.exit_code, pod.reason) == (137, "CONTAINER_ENDED")


def test_what_the_driver_said_of_the_gpus_is_in_the_trainers_record():
    record = json.dumps({"exitCode": 134, "reason": "signal 6", "gpuError": "GPU 3: Xid 94" + "!" * 1000})
    pod = read_pod(raw_pod({"phase": "Failed", "containerStatuses": [ended("trainer", 134, message=record)]}))
    assert pod.gpu_error.startswith("GPU 3: Xid 94!")
    assert len(pod.gpu_error) == 512
