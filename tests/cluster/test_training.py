"""From `kubectl apply` to trained weights: the operator's pods run the real trainer, on the CPU, in two processes.

The namespace enforces PodSecurity restricted. The pods are processes that pod_agent.py starts, not containers.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster import pod_agent
from local_cluster.control_plane import ControlPlane
from local_cluster.pod_agent import PodAgent
from tests.support.models import tiny_model
from tests.support.operator import operator_process
from tests.support.operator.job_client import JobClient, new_namespace, serving, wait_until
from tests.support.operator.training_jobs import (
    CLAIM,
    PATIENCE_S,
    STEPS,
    await_checkpoint,
    checkpoint,
    job,
    losses,
    saved,
)
from tests.support.ranks import tiny_run

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def training_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with an operator, for jobs that really train."""
    for plane in serving(tmp_path_factory.mktemp("training-plane")):
        with operator_process.running(plane.kubeconfig, tmp_path_factory.mktemp("training-operator")):
            yield plane


@pytest.fixture(scope="module")
def agent(training_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodAgent]:
    """The node: every pod of one restricted namespace runs as a process."""
    namespace = new_namespace(training_plane, "training")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    training_plane.merge(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": labels}})
    folder = tmp_path_factory.mktemp("node")
    with pod_agent.running(PodAgent(plane=training_plane, namespace=namespace, folder=folder)) as running:
        yield running


@pytest.fixture(scope="module")
def jobs(agent: PodAgent) -> JobClient:
    """The jobs of the agent's namespace."""
    return JobClient(plane=agent.plane, namespace=agent.namespace)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Arguments of a short run of two ranks: a tiny random Llama, a few conversations."""
    folder = tmp_path_factory.mktemp("inputs")
    given = tiny_run.arguments(
        tiny_model.make("llama", folder),
        tiny_run.write_data(folder / "train.jsonl"),
        Path("unused"),
        train_iters=STEPS,
        save_interval=50,
        to_hf=True,
    )
    return {name: value for name, value in given.items() if name not in ("save", "add_version")}


@pytest.fixture(scope="module")
def undisturbed(agent: PodAgent, jobs: JobClient, inputs: dict[str, object]) -> list[float]:
    """Losses of a job that no one disturbs; it ends as Succeeded with an exported model."""
    jobs.submit(job("alone", inputs))
    status = jobs.await_phase("Succeeded", "alone", PATIENCE_S)
    assert status["restarts"]["total"] == 0
    assert status["resolved"]["worldSize"] == 2
    assert (saved(agent, "alone") / "hf" / "model.safetensors").exists()
    return losses(agent, "alone")


def test_a_job_of_two_pods_trains_to_the_end(undisturbed: list[float]):
    assert len(undisturbed) == STEPS
    assert undisturbed[-1] < undisturbed[0]


def test_a_killed_pod_brings_the_gang_back_from_its_checkpoint_to_the_same_loss(
    agent: PodAgent, jobs: JobClient, inputs: dict[str, object], undisturbed: list[float]
):
    jobs.submit(job("killed", inputs))
    at_least = await_checkpoint(agent, "killed")
    (pod,) = [pod for pod in agent.pods.values() if pod.name == "killed-a0-worker-0"]
    os.kill(pod.identity.pid, signal.SIGKILL)
    status = jobs.await_phase("Succeeded", "killed", PATIENCE_S)
    assert (status["restarts"]["total"], status["restarts"]["counted"]) == (1, 1)
    assert status["lastFailure"]["exitCode"] == 137
    assert at_least > 0
    assert losses(agent, "killed")[-1] == undisturbed[-1]


def test_an_evicted_pod_restarts_the_gang_uncounted_to_the_same_loss(
    agent: PodAgent, jobs: JobClient, inputs: dict[str, object], undisturbed: list[float]
):
    jobs.submit(job("evicted", inputs))
    await_checkpoint(agent, "evicted")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "evicted-a0-worker-0"}}
    jobs.plane.create(jobs.path("pods", "evicted-a0-worker-0") + "/eviction", eviction)
    status = jobs.await_phase("Succeeded", "evicted", PATIENCE_S)
    assert (status["restarts"]["total"], status["restarts"]["counted"]) == (1, 0)
    assert losses(agent, "evicted")[-1] == undisturbed[-1]


def test_deleting_a_job_while_it_trains_saves_and_leaves_the_claim_alone(
    agent: PodAgent, jobs: JobClient, inputs: dict[str, object]
):
    jobs.submit(job("deleted", {**inputs, "train_iters": 1_000_000, "save_interval": 1_000_000}))
    wait_until(lambda: (saved(agent, "deleted") / "logging.jsonl").exists(), bool, "the first step", PATIENCE_S)
    jobs.await_phase("Running", "deleted")
    jobs.delete("deleted")
    wait_until(lambda: jobs.pods("deleted"), lambda pods: not pods, "every pod to be gone", PATIENCE_S)
    for plural in ("services", "configmaps"):
        wait_until(lambda plural=plural: jobs.names_of(plural, "deleted"), lambda left: not left, f"no {plural}")
    assert jobs.job("deleted") is None
    assert jobs.plane.get(jobs.path("persistentvolumeclaims", "deleted-checkpoint"))
    assert checkpoint(agent, "deleted") > 0


def test_a_second_job_in_one_folder_is_refused_unless_it_adopts_what_the_first_left(
    agent: PodAgent, jobs: JobClient, inputs: dict[str, object]
):
    claims = f"/api/v1/namespaces/{jobs.namespace}/persistentvolumeclaims"
    jobs.plane.create(claims, {"metadata": {"name": "shared"}, "spec": {**CLAIM, "storageClassName": ""}})

    def submit(name: str, **given: object) -> None:
        shared = {"pvc": {"claimName": "shared"}, "subPath": "run", **given}
        body = job(name, {**inputs, "train_iters": 2 if name == "first" else 4})
        jobs.submit({**body, "spec": {**body["spec"], "checkpoint": shared}})

    submit("first")
    jobs.await_phase("Succeeded", "first", PATIENCE_S)
    submit("second")
    status = jobs.await_phase("Failed", "second", PATIENCE_S)
    assert (status["lastFailure"]["exitCode"], status["restarts"]["total"]) == (73, 0)
    assert "has the run of another job, first" in status["lastFailure"]["message"]
    assert "spec.checkpoint.adopt: true" in status["lastFailure"]["message"]
    submit("third", adopt=True)
    jobs.await_phase("Succeeded", "third", PATIENCE_S)
    rows = map(json.loads, (agent.claim("shared") / "run" / "logging.jsonl").read_text().splitlines())
    assert [row["iteration"] for row in rows if "lm loss" in row] == [1, 2, 3, 4]
