"""Random manifests through CRD, webhook and operator: no exception, every problem said, every pod acceptable."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from local_cluster.control_plane import ControlPlane, Refused
from megatron_operator import manifest
from megatron_operator.core import reconcile
from megatron_operator.core.desired import build
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Seen
from megatron_operator.process import admission
from megatron_trainjob.violation import Violation
from tests.support.operator import manifest_fuzz
from tests.support.operator.job_client import JobClient

pytestmark = pytest.mark.cluster
# Parts of a manifest that go into pods as they are: what is wrong in them the server says when it gets the pod.
PLAIN = {
    *("env", "envFrom", "volumes", "volumeMounts", "podTemplate", "masterTemplate", "workerTemplate"),
    *("resourcesPerNode", "initializers", "checkpoint", "imagePullSecrets", "network", "serviceAccountName"),
}
NOW = 1_800_000_000.0
SERVED = {
    "Pod": "pods",
    "Service": "services",
    "ConfigMap": "configmaps",
    "PersistentVolumeClaim": "persistentvolumeclaims",
}


def with_identity(body: dict, namespace: str) -> dict:
    """The manifest as the server would hand it to the operator."""
    return {**body, "metadata": {**body["metadata"], "namespace": namespace, "uid": "u", "generation": 1}}


def judge(body: dict) -> str:
    """What the operator makes of a manifest: "runs" or "rejected". Nothing may raise, nothing may be left unsaid."""
    whole = with_identity(body, "fuzz")
    parsed = manifest.parse(whole)
    if isinstance(parsed, Job):
        plan = reconcile.plan(parsed, Seen(), NOW)
        if parsed.managed_by == "megatrontrain.dev/operator":
            assert plan.status is not None or plan.create
        assert admission.judge(whole)[0] == ""
        return "runs"
    assert parsed
    assert all(isinstance(violation, Violation) and violation.message for violation in parsed)
    plan = reconcile.reject(whole, parsed, Seen(), NOW)
    assert plan.create == ()
    said, _ = admission.judge(whole)
    assert all(violation.path in said for violation in parsed)
    return "rejected"


def accepts(jobs: JobClient, plural: str, body: dict) -> str:
    """ "" when the server would take this object, else why not. Nothing is stored."""
    try:
        jobs.plane.create(jobs.path(plural), body, dryRun="All")
    except Refused as refused:
        return refused.message
    return ""


def fuzz_pure(seed: int, num: int) -> Counter[str]:
    """Outcomes of so many manifests in webhook and operator."""
    schema, draw = manifest_fuzz.spec_schema(), random.Random(seed)
    return Counter(judge(manifest_fuzz.any_manifest(schema, draw, f"job-{index}")) for index in range(num))


def fuzz_server(jobs: JobClient, seed: int, num: int) -> Counter[str]:
    """Outcomes on the real server. Whatever server and operator both let through has objects the server takes."""
    schema, draw, outcomes = manifest_fuzz.spec_schema(), random.Random(seed), Counter[str]()
    for index in range(num):
        body = manifest_fuzz.any_manifest(schema, draw, f"job-{index}")
        if accepts(jobs, "megatrontrainjobs", body):
            outcomes["refused by the server"] += 1
            continue
        created = jobs.plane.create(jobs.path("megatrontrainjobs"), body, dryRun="All")
        parsed = manifest.parse(created)
        if not isinstance(parsed, Job):
            outcomes["rejected by the operator"] += 1
            continue
        for each in build.everything(parsed, 0):
            if each["kind"] in SERVED and (refusal := accepts(jobs, SERVED[each["kind"]], each)):
                is_users = bool(PLAIN & set(body["spec"]))
                outcomes["user's part refused" if is_users else f"object refused: {refusal[:200]}"] += 1
                break
        else:
            outcomes["runs"] += 1
    return outcomes


def test_no_manifest_makes_webhook_or_operator_stumble():
    outcomes = fuzz_pure(seed=1, num=600)
    assert outcomes["runs"] > 20
    assert outcomes["rejected"] > 100


def test_what_server_and_operator_let_through_has_pods_that_the_server_takes(jobs: JobClient):
    outcomes = fuzz_server(jobs, seed=2, num=200)
    assert [outcome for outcome in outcomes if outcome.startswith("object refused")] == []
    assert outcomes["runs"] > 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_manifests(plane: ControlPlane, jobs: JobClient):
    assert sum(fuzz_pure(seed=3, num=8000).values()) == 8000
    outcomes = fuzz_server(jobs, seed=4, num=2000)
    assert [outcome for outcome in outcomes if outcome.startswith("object refused")] == []
