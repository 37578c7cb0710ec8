"""Fixtures of the cluster tests: one real control plane with the CRD, a kubelet's stand-in, an operator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from local_cluster.control_plane import ControlPlane
from tests.support.operator import fake_kubelet, operator_process
from tests.support.operator.fake_kubelet import FakeKubelet
from tests.support.operator.job_client import JobClient, new_namespace, serving
from tests.support.operator.operator_process import OperatorProcess


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The session's control plane, on which the shared operator works."""
    yield from serving(tmp_path_factory.mktemp("control-plane"))


@pytest.fixture(scope="session")
def quiet_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A second control plane on which no operator works but the test's own."""
    yield from serving(tmp_path_factory.mktemp("quiet-plane"))


@pytest.fixture
def quiet_jobs(quiet_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[JobClient]:
    """The jobs of a namespace of the quiet control plane."""
    namespace = new_namespace(quiet_plane, request.node.name)
    yield JobClient(plane=quiet_plane, namespace=namespace)
    quiet_plane.delete(f"/api/v1/namespaces/{namespace}")


@pytest.fixture
def namespace(plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of this test's own."""
    namespace = new_namespace(plane, request.node.name)
    yield namespace
    plane.delete(f"/api/v1/namespaces/{namespace}")


@pytest.fixture
def jobs(plane: ControlPlane, namespace: str) -> JobClient:
    """The jobs of this test's namespace."""
    return JobClient(plane=plane, namespace=namespace)


@pytest.fixture(scope="session")
def kubelet(plane: ControlPlane) -> Iterator[FakeKubelet]:
    """Makes every pod of the session run until a test ends it."""
    with fake_kubelet.playing(FakeKubelet(kubeconfig=plane.kubeconfig)) as playing:
        yield playing


@pytest.fixture(scope="session")
def operator(
    plane: ControlPlane, kubelet: FakeKubelet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """One operator for the tests that do not hurt it."""
    with operator_process.running(plane.kubeconfig, tmp_path_factory.mktemp("operator")) as running:
        yield running
