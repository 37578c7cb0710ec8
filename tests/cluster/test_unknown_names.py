"""What no admission policy refuses, or none is there to refuse: stored, and answered by the operator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster.control_plane import ControlPlane
from megatron_operator.api.admission_policy import NAME
from tests.support.operator import operator_process
from tests.support.operator.job_client import ARGS, POLICIES, JobClient, is_policed, manifest, wait_until

pytestmark = pytest.mark.cluster
BINDINGS = POLICIES["ValidatingAdmissionPolicyBinding"]


@pytest.fixture
def unpoliced(quiet_plane: ControlPlane) -> Iterator[None]:
    """The control plane with the policy out of force for this test."""
    binding = quiet_plane.get(f"{BINDINGS}/{NAME}")
    quiet_plane.delete(f"{BINDINGS}/{NAME}")
    wait_until(lambda: is_policed(quiet_plane), lambda policed: not policed, "the policy to be out of force")
    yield
    del binding["metadata"]["resourceVersion"], binding["metadata"]["uid"]
    quiet_plane.create(BINDINGS, binding)
    wait_until(lambda: is_policed(quiet_plane), bool, "the policy to be in force again")


def test_the_operator_fails_the_job_and_names_what_was_meant(unpoliced: None, quiet_jobs: JobClient, tmp_path: Path):
    variables = {"MTJ_WATCH_NAMESPACES": quiet_jobs.namespace}
    with operator_process.running(quiet_jobs.plane.kubeconfig, tmp_path, **variables):
        quiet_jobs.submit(manifest(numNode=8, args={**ARGS, "tensor_model_paralel_size": 8}))
        quiet_jobs.await_phase("Failed")
    failed = quiet_jobs.condition("Failed")
    assert failed["reason"] == "InvalidSpec"
    assert "did you mean tensor_model_parallel_size?" in failed["message"]
    assert "did you mean numNodes?" in failed["message"]
    assert quiet_jobs.pods() == {}


def test_checkpoints_that_would_hide_the_containers_own_folders_make_no_pod(quiet_jobs: JobClient, tmp_path: Path):
    variables = {"MTJ_WATCH_NAMESPACES": quiet_jobs.namespace}
    paths = ("/", "/usr", "/proc/self", "/etc/megatron")
    jobs = {f"job-{number}": path for number, path in enumerate(paths)}
    with operator_process.running(quiet_jobs.plane.kubeconfig, tmp_path, **variables):
        for name, path in jobs.items():
            quiet_jobs.submit(manifest(name, checkpoint={"mountPath": path}))
        for name, path in jobs.items():
            quiet_jobs.await_phase("Failed", name)
            failed = quiet_jobs.condition("Failed", name)
            assert failed["reason"] == "InvalidSpec"
            assert "spec.checkpoint.mountPath: " in failed["message"]
            assert f"(got '{path}')" in failed["message"]
            assert quiet_jobs.pods(name) == {}
