"""A job's life on the real API server: pods, restarts, suspension, completion, deletion, and what a user sees."""

from __future__ import annotations

import json

import pytest

from local_cluster.control_plane import ControlPlane, Refused
from tests.support.operator import fake_kubelet
from tests.support.operator.job_client import ARGS, JobClient, manifest, wait_until
from tests.support.operator.operator_process import OperatorProcess

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator")]
FAST = {"backoffSeconds": {"initial": 0, "max": 1}}
BAD_DATA = json.dumps({"exitCode": 65, "reason": "BAD_DATA", "rank": 1, "message": "row 7 is no JSON"})


def test_a_job_gets_its_objects_runs_and_succeeds_with_its_master(jobs: JobClient):
    jobs.submit(manifest())
    pods = jobs.await_pods("job-a0-master-0", "job-a0-worker-0")
    jobs.await_phase("Running")
    assert jobs.names_of("services") == {"job"}
    assert jobs.names_of("configmaps") == {"job-a0-args"}
    environment = {each["name"]: each.get("value") for each in pods["job-a0-worker-0"]["spec"]["containers"][0]["env"]}
    assert environment["MASTER_ADDR"] == "job-a0-master-0.job"
    assert (environment["NNODES"], environment["NODE_RANK"]) == ("2", "1")
    for pod in pods:
        jobs.end_pod(pod, 0)
    status = jobs.await_phase("Succeeded")
    assert status["completionTime"]
    assert status["observedGeneration"] == 1
    jobs.await_events("JobRunning", "JobSucceeded")


def test_one_failed_pod_restarts_the_whole_gang_under_new_names(jobs: JobClient):
    jobs.submit(manifest(failurePolicy=FAST))
    jobs.await_phase("Running")
    jobs.end_pod("job-a0-worker-0", 137)
    jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
    status = jobs.await_phase("Running")
    assert (status["restarts"]["total"], status["restarts"]["attempt"]) == (1, 1)
    assert (status["lastFailure"]["pod"], status["lastFailure"]["exitCode"]) == ("job-a0-worker-0", 137)
    selector = jobs.plane.get(jobs.path("services", "job"))["spec"]["selector"]
    assert selector["megatrontrain.dev/restart-attempt"] == "1"


def test_a_failure_that_a_retry_cannot_help_fails_the_job_and_says_why(jobs: JobClient):
    jobs.submit(manifest(failurePolicy=FAST))
    jobs.await_phase("Running")
    jobs.end_pod("job-a0-worker-0", 65, message=BAD_DATA)
    status = jobs.await_phase("Failed")
    assert status["completionTime"]
    assert status["restarts"]["total"] == 0
    assert jobs.condition("Failed")["reason"] == "NonRetryableExit"
    assert status["lastFailure"]["message"] == "row 7 is no JSON"
    assert jobs.condition("Stalled")["status"] == "True"


def end_container(jobs: JobClient, pod: str, container: str, code: int, *, kind: str = "containerStatuses") -> None:
    """Ends one container of a pod; the others stay as they are, so a pod that runs still runs."""
    raw = jobs.plane.get(jobs.path("pods", pod))
    ended = fake_kubelet.ended(raw, code)["containerStatuses"][0]
    others = [each for each in raw["status"].get(kind, ()) if each["name"] != container]
    status = {kind: [*others, {**ended, "name": container}]}
    jobs.plane.merge(jobs.path("pods", pod) + "/status", {"status": status})


SIDECAR = {"podTemplate": {"spec": {"containers": [{"name": "istio-proxy", "image": "proxy"}]}}}


def test_the_end_of_the_trainer_is_the_end_of_its_pod_though_a_sidecar_lives_on(jobs: JobClient):
    jobs.submit(manifest(failurePolicy=FAST, **SIDECAR))
    jobs.await_phase("Running")
    end_container(jobs, "job-a0-worker-0", "trainer", 1)
    jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
    jobs.await_phase("Running")
    assert jobs.status()["lastFailure"]["container"] == "trainer"
    for pod in ("job-a1-master-0", "job-a1-worker-0"):
        end_container(jobs, pod, "trainer", 0)
    jobs.await_phase("Succeeded")
    jobs.await_pods()


def test_a_failed_init_container_is_named_and_its_code_is_not_the_trainers(jobs: JobClient):
    init = {"podTemplate": {"spec": {"initContainers": [{"name": "wait-nfs", "image": "busybox"}]}}}
    jobs.submit(manifest(failurePolicy=FAST, **init))
    jobs.await_phase("Running")
    waiting = {"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}, "ready": False}
    status = {"phase": "Failed", "containerStatuses": [{**waiting, "image": "", "imageID": "", "restartCount": 0}]}
    end_container(jobs, "job-a0-worker-0", "wait-nfs", 2, kind="initContainerStatuses")
    jobs.plane.merge(jobs.path("pods", "job-a0-worker-0") + "/status", {"status": status})
    jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
    failure = jobs.status()["lastFailure"]
    assert (failure["container"], failure["containerKind"], failure["exitCode"]) == ("wait-nfs", "InitContainer", 2)


def scale(jobs: JobClient, replicas: int) -> int:
    """What the scale subresource says after it was set to this, as kubectl scale does."""
    path = jobs.path("megatrontrainjobs", "job") + "/scale"
    said = jobs.plane.merge(path, {"spec": {"replicas": replicas}})
    assert "megatrontrain.dev/job-name=job" in said["status"]["selector"]
    return said["spec"]["replicas"]


def test_an_elastic_job_is_scaled_while_it_runs_and_another_only_while_suspended(jobs: JobClient):
    jobs.submit(manifest(elasticPolicy={"minNodes": 2, "maxNodes": 4}))
    jobs.await_phase("Running")
    assert jobs.plane.get(jobs.path("megatrontrainjobs", "job") + "/scale")["spec"]["replicas"] == 2
    assert scale(jobs, 4) == 4
    jobs.await_pods("job-a1-master-0", *(f"job-a1-worker-{index}" for index in range(3)))
    status = jobs.await_phase("Running")
    assert (status["restarts"]["total"], status["restarts"]["attempt"]) == (0, 1)
    with pytest.raises(Refused, match="numNodes changes only while"):
        scale(jobs, 8)
    jobs.await_events("JobResized")
    jobs.submit(manifest("rigid"))
    jobs.await_phase("Running", "rigid")
    with pytest.raises(Refused, match="numNodes changes only while"):
        jobs.patch("rigid", numNodes=4)
    jobs.patch("rigid", suspend=True)
    assert jobs.patch("rigid", numNodes=4)["spec"]["numNodes"] == 4


def test_restarts_end_at_the_limit_of_the_failure_policy(jobs: JobClient):
    jobs.submit(manifest(failurePolicy={**FAST, "maxRestarts": 1}))
    for attempt in (0, 1):
        jobs.await_pods(f"job-a{attempt}-master-0", f"job-a{attempt}-worker-0")
        jobs.await_phase("Running")
        jobs.end_pod(f"job-a{attempt}-master-0", 1)
    status = jobs.await_phase("Failed")
    assert jobs.condition("Failed")["reason"] == "MaxRestartsExceeded"
    assert status["restarts"]["total"] == 1


def test_a_pod_deleted_by_somebody_restarts_the_gang_uncounted(jobs: JobClient):
    jobs.submit(manifest())
    jobs.await_phase("Running")
    jobs.plane.delete(jobs.path("pods", "job-a0-worker-0"))
    jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
    status = jobs.await_phase("Running")
    assert (status["restarts"]["total"], status["restarts"]["counted"]) == (1, 0)


def test_suspend_takes_the_pods_away_and_resume_brings_them_back(jobs: JobClient):
    jobs.submit(manifest())
    jobs.await_phase("Running")
    jobs.patch("job", suspend=True)
    jobs.await_phase("Suspended")
    jobs.await_pods()
    assert "startTime" not in jobs.status()
    jobs.patch("job", suspend=False)
    status = jobs.await_phase("Running")
    assert len(jobs.pods()) == 2
    assert status["restarts"].get("counted", 0) == 0
    assert jobs.condition("Suspended")["status"] == "False"


def test_a_job_created_suspended_makes_no_pod(jobs: JobClient):
    jobs.submit(manifest(suspend=True))
    jobs.await_phase("Suspended")
    assert jobs.pods() == {}


def test_deleting_a_job_takes_everything_with_it_without_any_finalizer(jobs: JobClient):
    assert "finalizers" not in jobs.submit(manifest())["metadata"]
    jobs.await_phase("Running")
    assert "finalizers" not in jobs.job()["metadata"]
    assert "annotations" not in jobs.job()["metadata"]
    jobs.delete()
    jobs.await_pods()
    for plural in ("services", "configmaps"):
        wait_until(lambda plural=plural: jobs.names_of(plural), lambda left: not left, f"no {plural}")


def test_a_checkpoint_claim_is_made_once_and_outlives_the_job(jobs: JobClient):
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    jobs.submit(manifest(checkpoint={"pvc": {"template": {"spec": claim}}}))
    jobs.await_phase("Running")
    assert jobs.plane.get(jobs.path("persistentvolumeclaims", "job-checkpoint"))["spec"]["accessModes"] == [
        "ReadWriteMany"
    ]
    jobs.delete()
    jobs.await_pods()
    jobs.submit(manifest(checkpoint={"pvc": {"template": {"spec": claim}}}))
    jobs.await_phase("Running")


def test_a_claim_that_went_with_its_job_or_was_deleted_is_made_for_the_next(jobs: JobClient):
    """The operator runs on meanwhile: that it once made one of this name says nothing about the next job's."""
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    path = jobs.path("persistentvolumeclaims", "job-checkpoint")
    for retains in (False, True):
        known = None
        for _ in range(2):
            created = jobs.submit(manifest(checkpoint={"pvc": {"template": {"spec": spec}}, "retainOnDelete": retains}))
            jobs.await_phase("Running")
            claim = jobs.plane.get(path)["metadata"]
            assert ("deletionTimestamp" in claim, claim["uid"] == known) == (False, False)
            known, owners = claim["uid"], claim.get("ownerReferences", [])
            assert [owner["uid"] for owner in owners] == ([] if retains else [created["metadata"]["uid"]])
            jobs.delete()
            wait_until(jobs.job, lambda job: job is None, "the job to be gone")
            if retains:
                jobs.plane.delete(path)
                wait_until(lambda: jobs.plane.get(path), lambda left: left is None, "the claim to be gone")


def test_another_managers_job_is_left_alone(jobs: JobClient, operator: OperatorProcess):
    jobs.submit(manifest(managedBy="kueue.x-k8s.io/multikueue"))
    jobs.submit(manifest("ours"))
    jobs.await_phase("Running", "ours")
    assert jobs.status() == {}
    assert jobs.pods() == {}


def test_an_active_deadline_ends_the_job(jobs: JobClient):
    jobs.submit(manifest(runPolicy={"activeDeadlineSeconds": 2}))
    jobs.await_phase("Failed")
    assert jobs.condition("Failed")["reason"] == "DeadlineExceeded"
    jobs.await_pods()


def test_a_finished_job_is_deleted_after_its_time_to_live_when_it_says_so(jobs: JobClient):
    jobs.submit(manifest(runPolicy={"ttlSecondsAfterFinished": 1, "ttlPolicy": "DeleteJob"}))
    jobs.await_phase("Running")
    for pod in jobs.pods():
        jobs.end_pod(pod, 0)
    wait_until(jobs.job, lambda job: job is None, "the job to be deleted")


def test_the_pods_of_a_finished_job_go_after_its_time_to_live_and_the_job_stays(jobs: JobClient):
    jobs.submit(manifest(runPolicy={"ttlSecondsAfterFinished": 1}))
    jobs.await_phase("Running")
    for pod in jobs.pods():
        jobs.end_pod(pod, 0)
    jobs.await_phase("Succeeded")
    jobs.await_pods()
    assert jobs.status()["phase"] == "Succeeded"


def test_a_foreign_object_of_a_wanted_name_is_left_alone_and_reported(jobs: JobClient):
    service = {"metadata": {"name": "job"}, "spec": {"ports": [{"port": 80}]}}
    jobs.plane.create(jobs.path("services"), service)
    jobs.submit(manifest())
    stalled = wait_until(lambda: jobs.condition("Stalled"), bool, "condition Stalled")
    assert stalled["reason"] == "NameTaken"
    assert jobs.pods() == {}
    jobs.plane.delete(jobs.path("services", "job"))
    jobs.await_phase("Running")
    assert jobs.condition("Stalled") == {}


def test_a_quota_that_refuses_the_pods_shows_and_passes(jobs: JobClient):
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    jobs.plane.create(jobs.path("resourcequotas"), quota)
    wait_until(lambda: jobs.plane.get(jobs.path("resourcequotas", "none")).get("status"), bool, "the quota to count")
    jobs.submit(manifest())
    stalled = wait_until(lambda: jobs.condition("Stalled"), bool, "condition Stalled")
    assert "exceeded quota" in stalled["message"]
    jobs.plane.delete(jobs.path("resourcequotas", "none"))
    jobs.await_phase("Running")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({"spec": {"containers": [{"name": "trainer", "resources": {"limits": {"memory": "-1Gi"}}}]}}, "-1Gi"),
        ({"spec": {"priorityClassName": 7}}, "priorityClassName"),
        ({"metadata": {"annotations": {"a b": "c"}}}, "a b"),
    ],
    ids=["a wrong value", "a wrong type", "a wrong name"],
)
def test_a_pod_that_the_server_can_never_take_fails_the_job_in_its_words(jobs: JobClient, template: dict, words: str):
    jobs.submit(manifest(workerTemplate=template))
    jobs.await_phase("Failed")
    failed = jobs.condition("Failed")
    assert failed["reason"] == "InvalidSpec"
    assert words in failed["message"]
    jobs.await_events("InvalidSpec")
    wait_until(jobs.pods, lambda pods: not pods, "no half gang")


def test_a_policy_that_refuses_pods_is_waited_for(jobs: JobClient, plane: ControlPlane):
    """Its refusal has the code of an invalid object, and passes."""
    kinds = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    selector = {"matchLabels": {"kubernetes.io/metadata.name": jobs.namespace}}
    match = {"resourceRules": [rule], "namespaceSelector": selector}
    policy = {"matchConstraints": match, "validations": [{"expression": "false", "message": "not today"}]}
    name = {"name": f"no-pods-{jobs.namespace}"}
    plane.create(f"{kinds}ies", {"metadata": name, "spec": policy})
    binding = {"policyName": name["name"], "validationActions": ["Deny"]}
    plane.create(f"{kinds}ybindings", {"metadata": name, "spec": binding})
    try:
        wait_until(lambda: refuses_pods(jobs), bool, "the policy to be in force")
        jobs.submit(manifest())
        stalled = wait_until(lambda: jobs.condition("Stalled"), bool, "condition Stalled")
        assert "not today" in stalled["message"]
        assert jobs.status()["phase"] != "Failed"
    finally:
        plane.delete(f"{kinds}ybindings/{name['name']}")
        plane.delete(f"{kinds}ies/{name['name']}")
    jobs.await_phase("Running")


def refuses_pods(jobs: JobClient) -> bool:
    """Whether a pod would be refused; none is made."""
    body = {"metadata": {"name": "x"}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
    try:
        jobs.plane.create(jobs.path("pods"), body, dryRun="All")
    except Refused:
        return True
    return False


def test_an_invalid_job_that_the_schema_lets_through_fails_with_every_reason(jobs: JobClient):
    """Rules over lists of objects, and sizes that follow from "auto", are beyond CEL."""
    args = {**ARGS, "tensor_model_parallel_size": 3}
    jobs.submit(manifest(nprocPerNode="auto", args=args, env=[{"name": "RANK", "value": "1"}]))
    jobs.await_phase("Failed")
    failed = jobs.condition("Failed")
    assert failed["reason"] == "InvalidSpec"
    assert "spec.env[0].name" in failed["message"]
    assert "spec.args.tensor_model_parallel_size" in failed["message"]
    assert jobs.pods() == {}
