"""The admission webhook, served by the operator to the real API server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster import control_plane
from local_cluster.control_plane import ControlPlane, Refused, free_port
from tests.support.operator import operator_process
from tests.support.operator.job_client import JobClient, manifest, wait_until
from tests.support.operator.webhook_client import CONFIGURATIONS, configuration, is_asked, wrong

pytestmark = pytest.mark.cluster


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


def test_every_problem_is_said_when_the_job_is_submitted(webhook: None, quiet_jobs: JobClient):
    with pytest.raises(Refused) as caught:
        quiet_jobs.submit(wrong())
    assert caught.value.status == 422
    assert "spec.env[0].name" in caught.value.message
    assert "spec.args.tensor_model_parallel_size" in caught.value.message
    assert quiet_jobs.job("wrong") is None


def test_mounts_and_variables_that_cannot_work_are_refused_in_words(webhook: None, quiet_jobs: JobClient):
    checkpoint = {"mountPath": "/etc/megatron/checkpoints"}
    with pytest.raises(Refused) as caught:
        quiet_jobs.submit(manifest(checkpoint=checkpoint, env=[{"name": "MTJ_RANK_START", "value": "thread"}]))
    assert "spec.checkpoint.mountPath: is a folder of the container's system" in caught.value.message
    assert "spec.env[0].value: MTJ_RANK_START must be fork or spawn" in caught.value.message


def test_a_valid_job_passes_and_its_changes_are_judged_too(webhook: None, quiet_jobs: JobClient):
    quiet_jobs.submit(manifest(suspend=True))
    with pytest.raises(Refused, match=r"spec\.env\[0\]\.name"):
        quiet_jobs.patch("job", env=[{"name": "RANK", "value": "1"}])
    quiet_jobs.patch("job", suspend=False)
    quiet_jobs.delete()
