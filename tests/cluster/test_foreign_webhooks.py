"""Somebody's webhook refuses the pods of one namespace with an odd status: its job says so, all others go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster.control_plane import ControlPlane
from tests.support.operator import fake_kubelet, foreign_webhook, operator_process
from tests.support.operator.fake_kubelet import FakeKubelet
from tests.support.operator.job_client import JobClient, manifest, new_namespace, wait_until
from tests.support.operator.operator_process import OperatorProcess

pytestmark = pytest.mark.cluster


@pytest.fixture
def others(quiet_plane: ControlPlane) -> Iterator[JobClient]:
    """The jobs of another namespace."""
    namespace = new_namespace(quiet_plane, "others")
    yield JobClient(plane=quiet_plane, namespace=namespace)
    quiet_plane.delete(f"/api/v1/namespaces/{namespace}")


@pytest.fixture
def operator(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, others: JobClient, tmp_path: Path
) -> Iterator[OperatorProcess]:
    """An operator for both namespaces, which often compares its jobs with the server's."""
    variables = {"MTJ_WATCH_NAMESPACES": f"{quiet_jobs.namespace},{others.namespace}", "MTJ_COMPARE_S": "2"}
    with operator_process.running(quiet_plane.kubeconfig, tmp_path, **variables) as running:
        yield running


BUSY = {"code": 429, "reason": "TooManyRequests", "message": "slow down", "details": {"retryAfterSeconds": 600}}
ABSENT = {"code": 404, "reason": "NotFound", "message": 'image "job" not found'}
EXISTS = {"code": 409, "reason": "AlreadyExists", "message": "we have such a pod"}


@pytest.mark.parametrize("status", [BUSY, ABSENT, EXISTS], ids=lambda status: status["reason"])
def test_a_refusal_with_any_status_holds_up_its_job_alone_and_is_shown_on_it(
    quiet_plane: ControlPlane, quiet_jobs: JobClient, others: JobClient, operator: OperatorProcess, status
):
    with (
        fake_kubelet.playing(FakeKubelet(kubeconfig=quiet_plane.kubeconfig)),
        foreign_webhook.refusing(quiet_plane, quiet_jobs.namespace, status),
    ):
        quiet_jobs.submit(manifest())
        wait_until(lambda: operator.metric("megatron_operator_reconcile_errors_total"), bool, "a refusal")
        others.submit(manifest())
        others.await_phase("Running", patience_s=20)
        stalled = wait_until(lambda: quiet_jobs.condition("Stalled"), bool, "Stalled", 60)
        assert status["message"] in stalled["message"]
        assert operator.process.poll() is None
    with fake_kubelet.playing(FakeKubelet(kubeconfig=quiet_plane.kubeconfig)):
        quiet_jobs.await_phase("Running", patience_s=90)
    assert operator.process.poll() is None
