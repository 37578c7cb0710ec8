"""What people ask of a job: another size while it runs, whose success counts, labels on pods, a domain of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_operator import manifest
from megatron_operator.api import names
from megatron_operator.core import reconcile
from megatron_operator.core.attempts import HeardReport
from megatron_operator.core.desired import pods
from megatron_operator.core.observe import read_pod
from megatron_operator.core.plan import Plan
from megatron_trainjob.launcher import LauncherReport
from megatron_trainjob.termination import TerminationRecord
from tests.support.operator.job_values import NOW, conditions, failed, job, kinds, pod, raw, seen

ELASTIC = {"elasticPolicy": {"minNodes": 1, "maxNodes": 4}}


def test_a_changed_size_stops_the_gang_uncounted_and_goes_on_with_the_new_one():
    sized = [pod(rank, num_nodes=2) for rank in (0, 1)]
    assert reconcile.plan(job(ELASTIC), seen(*sized), NOW).delete == ()
    larger = job({**ELASTIC, "numNodes": 4})
    plan = reconcile.plan(larger, seen(*sized), NOW)
    assert [ref.name for ref in plan.delete] == ["tune-a0-master-0", "tune-a0-worker-0"]
    assert (conditions(plan.status)["Restarting"], plan.status["phase"]) == (("True", "Resized"), "Restarting")
    counters = plan.status["restarts"]
    assert (counters["attempt"], counters["total"], counters["counted"]) == (1, 0, 0)
    assert [event.reason for event in plan.events] == ["JobResized"]
    saving = [pod(rank, num_nodes=2, deleting=True, grace_ends=NOW + 100) for rank in (0, 1)]
    assert reconcile.plan(larger, seen(*saving, status=plan.status), NOW + 1).create == ()
    gone = reconcile.plan(larger, seen(status=plan.status, config_maps=frozenset()), NOW + 20)
    assert [name for kind, name in kinds(gone) if kind == "Pod"] == [names.pod_name("tune", 1, i) for i in range(4)]


def test_the_size_that_pods_were_made_for_is_written_on_those_of_an_elastic_job_alone():
    body = pods.pod(job(ELASTIC), 0, 0)
    assert read_pod({**body, "status": {}}).num_nodes == 2
    assert read_pod({**pods.pod(job(), 0, 0), "status": {}}).num_nodes is None
    body["metadata"]["annotations"][names.ANNOTATION_NUM_NODES] = "many"
    assert read_pod({**body, "status": {}}).num_nodes is None


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"elasticPolicy": {"minNodes": 3, "maxNodes": 2}}, "spec.elasticPolicy.minNodes"),
        ({"elasticPolicy": {"minNodes": 3, "maxNodes": 4}}, "spec.numNodes"),
        ({**ELASTIC, "checkpoint": {"resume": "Never"}}, "spec.checkpoint.resume"),
        ({"copyToPods": {"labels": ["megatrontrain.dev/job-name"]}}, "spec.copyToPods.labels[0]"),
    ],
    ids=["bounds", "outside", "no resume", "not the user's"],
)
def test_what_contradicts_itself_is_refused(spec, path):
    found = manifest.parse(raw(spec))
    assert isinstance(found, tuple)
    assert path in {violation.path for violation in found}


def test_with_success_policy_all_every_pod_has_to_succeed():
    spec = {"successPolicy": "All"}
    done = pod(0, phase="Succeeded", finished_at=NOW - 999)
    waiting = reconcile.plan(job(spec), seen(done, pod(1)), NOW)
    assert (waiting.delete, waiting.status is None or waiting.status["phase"] == "Running") == ((), True)
    over = reconcile.plan(job(spec), seen(done, pod(1, phase="Succeeded", finished_at=NOW)), NOW)
    assert conditions(over.status)["Complete"] == ("True", "AllSucceeded")
    broken = reconcile.plan(job(spec), seen(done, failed(1, 139)), NOW)
    assert broken.status["restarts"]["counted"] == 1


def test_a_finished_job_is_complete_as_a_job_of_kubernetes_is():
    plan = reconcile.plan(job(), seen(pod(0, phase="Succeeded", finished_at=NOW)), NOW)
    assert conditions(plan.status)["Complete"] == conditions(plan.status)["Succeeded"] == ("True", "MasterSucceeded")
    failing = reconcile.plan(job({"failurePolicy": {"maxRestarts": 0}}), seen(failed(0), pod(1)), NOW)
    assert "Complete" not in conditions(failing.status)


def test_labels_and_annotations_of_the_job_come_to_its_pods_on_request():
    labels = {"team": "vision", "cost/center": "7", "cost/unit": "a", "secret": "no"}
    annotations = {"note": "x", "kubectl.kubernetes.io/last-applied-configuration": "{}"}
    spec = {"copyToPods": {"labels": ["team", "cost/*"], "annotations": ["*"]}}
    metadata = pods.pod(job(spec, labels=labels, annotations=annotations), 0, 0)["metadata"]
    assert {key: metadata["labels"].get(key) for key in labels} == {**labels, "secret": None}
    assert metadata["annotations"]["note"] == "x"
    assert "kubectl.kubernetes.io/last-applied-configuration" not in metadata["annotations"]
    untouched = pods.pod(job(labels=labels), 0, 0)["metadata"]
    assert not set(labels) & set(untouched["labels"])


def affinity(**topology):
    template = {"spec": {"affinity": {"podAntiAffinity": {TERMS: [{"topologyKey": "zone"}]}}}}
    spec = {"scheduling": {"topology": {"key": "rack", "exclusive": True, **topology}}, "podTemplate": template}
    return pods.pod(job(spec), 0, 1)["spec"]["affinity"]


TERMS = "requiredDuringSchedulingIgnoredDuringExecution"


def test_a_job_has_a_domain_of_its_own_without_a_queue_and_keeps_the_users_affinities():
    found = affinity()
    (together,) = found["podAffinity"][TERMS]
    apart, users = found["podAntiAffinity"][TERMS]
    own = {"key": names.LABEL_JOB_NAME, "operator": "In", "values": ["tune"]}
    assert (together["topologyKey"], together["labelSelector"]["matchExpressions"]) == ("rack", [own])
    others = [each["operator"] for each in apart["labelSelector"]["matchExpressions"]]
    assert (apart["topologyKey"], others, apart["namespaceSelector"]) == ("rack", ["Exists", "NotIn"], {})
    assert users == {"topologyKey": "zone"}
    preferred = affinity(mode="Preferred")["podAffinity"]
    assert preferred["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"]["topologyKey"] == "rack"
    plain = manifest.parse(raw({"scheduling": {"topology": {"key": "rack"}}}))
    assert isinstance(plain, tuple)


def test_a_size_that_no_layout_fits_stalls_an_elastic_job_and_never_ends_it():
    """kubectl scale passes by the admission policy; what runs, runs on until somebody says a better number."""
    resized = raw({**ELASTIC, "numNodes": 3}, generation=2)
    violations = manifest.parse(resized)
    assert isinstance(violations, tuple)
    running = seen(pod(0, num_nodes=2), pod(1, num_nodes=2))
    plan = reconcile.reject(resized, violations, running, NOW)
    assert (plan.delete, plan.status["phase"]) == ((), "Running")
    assert conditions(plan.status)["Stalled"] == ("True", "InvalidSpec")
    assert conditions(plan.status)["Running"] == ("True", "AllPodsRunning")
    assert [event.reason for event in plan.events] == ["InvalidSpec"]
    assert reconcile.reject(resized, violations, replace(running, status=plan.status), NOW + 9) == Plan()
    rigid = raw({"numNodes": 3}, generation=2)
    assert reconcile.reject(rigid, violations, running, NOW).status["phase"] == "Failed"
    lost = TerminationRecord(exit_code=1, reason="ERROR", rank=0, iteration=3, message="")
    waits = HeardReport(report=LauncherReport(attempt=0, state="failed", failure=lost), at=NOW)
    idle = replace(running, launchers={each.name: waits for each in running.pods})
    plan = reconcile.reject(resized, violations, idle, NOW)
    assert (plan.status["phase"], len(plan.delete)) == ("Failed", 2), "launchers that wait for a restart only hold GPUs"
