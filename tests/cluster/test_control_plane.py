"""The control plane that the other tests rely on is the real one."""

from __future__ import annotations

import pytest

from local_cluster.control_plane import ControlPlane
from local_cluster.control_plane_binaries import KUBERNETES_VERSION

pytestmark = pytest.mark.cluster


def test_server_is_the_version_asked_for(plane: ControlPlane):
    assert plane.request("GET", "/version")["gitVersion"] == KUBERNETES_VERSION


def test_pods_are_admitted_at_once_in_a_fresh_namespace(plane: ControlPlane, namespace: str):
    pod = {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "image": "a"}]}}
    assert plane.create(f"/api/v1/namespaces/{namespace}/pods", pod)["status"]["phase"] == "Pending"
