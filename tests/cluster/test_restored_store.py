"""The API server's store is restored from a backup: versions start over from an older one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster.control_plane import ControlPlane
from tests.support.operator import fake_kubelet, operator_process
from tests.support.operator.fake_kubelet import FakeKubelet
from tests.support.operator.job_client import JobClient, manifest, new_namespace, serving, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
NUM_CHANGES = 60


@pytest.fixture
def own_plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane that no other test uses."""
    yield from serving(tmp_path / "plane")


def replace_store(plane: ControlPlane, source: Path, target: Path) -> None:
    """Copies the store while nothing runs on it."""
    for name in ("controller-manager", "apiserver", "etcd"):
        plane.stop_process(name)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    plane.start_etcd()
    plane.start_apiserver()
    plane.start_controller_manager()


def test_an_operator_whose_caches_are_newer_than_the_store_ends_and_the_next_one_goes_on(
    own_plane: ControlPlane, tmp_path: Path
):
    """Objects as they were before look old to its caches, which would ignore them: it starts again with empty ones."""
    store, backup = own_plane.folder / "etcd", tmp_path / "backup"
    jobs = JobClient(plane=own_plane, namespace=new_namespace(own_plane, "restored"))
    variables = {"MTJ_COMPARE_S": "2"}
    with operator_process.running(own_plane.kubeconfig, tmp_path, **variables) as operator:
        with fake_kubelet.playing(FakeKubelet(kubeconfig=own_plane.kubeconfig)):
            jobs.submit(manifest())
            jobs.await_phase("Running")
        replace_store(own_plane, store, backup)
        for number in range(NUM_CHANGES):
            annotations = {"test.example/number": str(number)}
            own_plane.merge(jobs.path("megatrontrainjobs", "job"), {"metadata": {"annotations": annotations}})
        replace_store(own_plane, backup, store)
        wait_until(operator.process.poll, lambda code: code is not None, "the operator to end", 60)
    with (
        operator_process.running(own_plane.kubeconfig, tmp_path, **variables),
        fake_kubelet.playing(FakeKubelet(kubeconfig=own_plane.kubeconfig)),
    ):
        jobs.end_pod("job-a0-worker-0", 1)
        jobs.await_pods("job-a1-master-0", "job-a1-worker-0")
        jobs.await_phase("Running")
