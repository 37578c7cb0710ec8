"""The admission webhook, served by the operator to the real API server."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster import control_plane
from local_cluster.control_plane import ControlPlane, Refused, free_port
from tests.support.operator import operator_process
from tests.support.operator.job_client import ARGS, JobClient, manifest, wait_until

pytestmark = pytest.mark.cluster
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
WRONG_ARGS = {**ARGS, "tensor_model_parallel_size": 3}


@pytest.fixture
def webhook(quiet_plane: ControlPlane, quiet_jobs: JobClient, tmp_path: Path) -> Iterator[None]:
    """An operator that serves the webhook, and the configuration that sends it this namespace's jobs."""
    names = "subjectAltName=IP:127.0.0.1"
    control_plane.certificate(quiet_plane.folder, "webhook", "/CN=webhook", names=names)
    for ending in ("crt", "key"):
        (tmp_path / f"tls.{ending}").write_bytes((quiet_plane.folder / f"webhook.{ending}").read_bytes())
    port = free_port()
    variables = {
        "MTJ_WATCH_NAMESPACES": quiet_jobs.namespace,
        "MTJ_WEBHOOK_CERTIFICATES": str(tmp_path),
        "MTJ_WEBHOOK_PORT": str(port),
    }
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **variables):
        quiet_plane.create(CONFIGURATIONS, configuration(quiet_plane, quiet_jobs.namespace, port))
        wait_until(lambda: is_asked(quiet_jobs), bool, "the webhook to be asked")
        yield
    quiet_plane.delete(f"{CONFIGURATIONS}/jobs")


def configuration(plane: ControlPlane, namespace: str, port: int) -> dict:
    """As the chart has it, with an address in place of the service."""
    authority = base64.b64encode((plane.folder / "ca.crt").read_bytes()).decode()
    return {
        "metadata": {"name": "jobs"},
        "webhooks": [
            {
                "name": "validate.megatrontrain.dev",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Ignore",
                "timeoutSeconds": 5,
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "rules": [
                    {
                        "apiGroups": ["megatrontrain.dev"],
                        "apiVersions": ["*"],
                        "resources": ["megatrontrainjobs"],
                        "operations": ["CREATE", "UPDATE"],
                    }
                ],
                "clientConfig": {"url": f"https://127.0.0.1:{port}/validate", "caBundle": authority},
            }
        ],
    }


def wrong(name: str = "wrong") -> dict:
    """A manifest with two problems that CEL cannot see."""
    return manifest(name, nprocPerNode="auto", args=WRONG_ARGS, env=[{"name": "RANK", "value": "1"}])


def is_asked(jobs: JobClient) -> bool:
    """Whether the API server already sends jobs to the webhook; a probe that passes is not stored."""
    try:
        jobs.plane.create(jobs.path("megatrontrainjobs"), wrong("probe"), dryRun="All")
    except Refused:
        return True
    return False


def test_every_problem_is_said_when_the_job_is_submitted(webhook: None, quiet_jobs: JobClient):
    with pytest.raises(Refused) as caught:
        quiet_jobs.submit(wrong())
    assert caught.value.status == 422
    assert "spec.env[0].name" in caught.value.message
    assert "spec.args.tensor_model_parallel_size" in caught.value.message
    assert quiet_jobs.job("wrong") is None


def test_a_valid_job_passes_and_its_changes_are_judged_too(webhook: None, quiet_jobs: JobClient):
    quiet_jobs.submit(manifest(suspend=True))
    with pytest.raises(Refused, match=r"spec\.env\[0\]\.name"):
        quiet_jobs.patch("job", env=[{"name": "RANK", "value": "1"}])
    quiet_jobs.patch("job", suspend=False)
    quiet_jobs.delete()
