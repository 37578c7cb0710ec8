"""Fixtures of the cluster tests: one real control plane for the session, one namespace for each test."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import control_plane
from control_plane import ControlPlane


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The session's control plane."""
    running = control_plane.start(tmp_path_factory.mktemp("control-plane"))
    yield running
    running.stop()


@pytest.fixture
def namespace(plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of this test's own, with its default service account (else pods are refused at first)."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:50].strip("-")
    namespace = f"{name}-{control_plane.free_port()}"
    plane.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    plane.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "default"}})
    yield namespace
    plane.delete(f"/api/v1/namespaces/{namespace}")
