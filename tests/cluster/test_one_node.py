"""Installed by its chart on a true node, the operator trains in containers: killed, evicted, lost, upgraded, deleted.

The namespace enforces PodSecurity restricted. What the machine must be: node_machine.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster import helm_chart, images, one_node, one_node_jobs
from local_cluster.control_plane import ControlPlane
from local_cluster.helm_chart import CHART, RELEASE
from local_cluster.images import TRAINER_IMAGE, VALUES
from local_cluster.kube_node import PAUSE_IMAGE
from local_cluster.node_machine import Unavailable
from local_cluster.one_node_jobs import Claims
from megatron_trainjob.exit_codes import ExitCode
from tests.support.models import tiny_model
from tests.support.operator.job_client import JobClient, new_namespace, wait_until
from tests.support.operator.training_jobs import (
    PATIENCE_S,
    STEPS,
    await_checkpoint,
    checkpoint,
    claim_of,
    job,
    losses,
    saved,
)
from tests.support.ranks import tiny_run

pytestmark = [pytest.mark.node, pytest.mark.timeout(1200)]
INPUTS = "/inputs"
ROOT = Path(__file__).parents[2]
FOREVER = {"image": TRAINER_IMAGE, "imagePullPolicy": "Never", "command": ["sleep", "infinity"]}
# By job: number of pods, what their trainers run, and what others put beside them.
BESIDE_OTHERS = {
    "mesh": (1, "exit 0", {"containers": [{"name": "istio-proxy", **FOREVER}]}),
    "peers": (
        2,
        "case $HOSTNAME in *worker*) exit 1;; *) sleep 1000;; esac",
        {"containers": [{"name": "istio-proxy", **FOREVER}]},
    ),
    "exporter": (1, "sleep 2", {"containers": [{"name": "exporter", **FOREVER, "command": ["sh", "-c", "exit 64"]}]}),
    "waits": (1, "sleep 1", {"initContainers": [{"name": "wait-nfs", **FOREVER, "command": ["sh", "-c", "exit 2"]}]}),
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The node with all images and the installed chart; both replicas are ready.

    A machine that cannot be a node skips the tests and says why, unless MTJ_NODE_REQUIRED says that it must be one.
    """
    with contextlib.ExitStack() as until_the_end:
        try:
            images.make_ready()
            plane = until_the_end.enter_context(one_node.running(tmp_path_factory.mktemp("node")))
            images.load_all(plane)
        except Unavailable as reason:
            if os.environ.get("MTJ_NODE_REQUIRED") == "1":
                raise
            pytest.skip(str(reason))
        helm_chart.on_cluster(
            plane, "install", RELEASE, str(CHART), "--create-namespace", *helm_chart.values_flags(VALUES)
        )
        await_operator(plane)
        yield plane


@pytest.fixture(scope="module")
def claims(node: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Claims:
    """A restricted namespace whose volumes are folders."""
    namespace = new_namespace(node, "training")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    node.merge(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": labels}})
    claims = Claims(plane=node, namespace=namespace, folder=tmp_path_factory.mktemp("volumes"))
    one_node_jobs.provide_environment(claims)
    return claims


@pytest.fixture(scope="module")
def jobs(claims: Claims) -> JobClient:
    """The jobs of that namespace."""
    return JobClient(plane=claims.plane, namespace=claims.namespace)


@pytest.fixture(scope="module")
def inputs(claims: Claims, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Arguments of a short run: a tiny random Llama, a few conversations, both on a claim."""
    folder = tmp_path_factory.mktemp("inputs")
    folder.chmod(0o755)  # the containers' user reads it
    model = tiny_model.make("llama", folder)
    (model / "model.safetensors").chmod(0o644)  # transformers writes it for its owner alone
    given = tiny_run.arguments(
        model,
        tiny_run.write_data(folder / "train.jsonl"),
        Path("unused"),
        train_iters=STEPS,
        save_interval=50,
        to_hf=True,
    )
    claims.provide("inputs", folder)
    moved = json.loads(json.dumps(given, default=str).replace(str(folder), INPUTS))
    return {name: value for name, value in moved.items() if name not in ("save", "add_version")}


def await_operator(plane: ControlPlane) -> None:
    """Waits until both replicas of the newest revision are ready."""
    path = f"/apis/apps/v1/namespaces/{helm_chart.NAMESPACE}/deployments/{helm_chart.FULL_NAME}"

    def settled(deployment: dict) -> bool:
        status = deployment.get("status", {})
        is_seen = status.get("observedGeneration") == deployment["metadata"]["generation"]
        return is_seen and status.get("readyReplicas") == status.get("updatedReplicas") == status.get("replicas") == 2

    wait_until(lambda: plane.get(path), settled, "two ready replicas", PATIENCE_S)


def start(jobs: JobClient, claims: Claims, name: str, args: dict[str, object], **spec: object) -> None:
    """Submits a job of two pods of one rank each."""
    claims.offer(claim_of(name))
    body = job(name, args)
    body["spec"] |= spec
    jobs.submit(one_node_jobs.on_the_node(body, read={INPUTS: "inputs"}))


@pytest.fixture(scope="module")
def undisturbed(claims: Claims, jobs: JobClient, inputs: dict[str, object]) -> list[float]:
    """Losses of a job that no one disturbs."""
    start(jobs, claims, "alone", inputs)
    status = jobs.await_phase("Succeeded", "alone", PATIENCE_S)
    assert status["restarts"]["total"] == 0
    return losses(claims, "alone")


def test_a_job_of_two_pods_trains_to_the_end_and_exports_its_model(claims: Claims, undisturbed: list[float]):
    assert len(undisturbed) == STEPS
    assert undisturbed[-1] < undisturbed[0]
    assert (saved(claims, "alone") / "hf" / "model.safetensors").exists()


def test_a_program_that_the_image_has_not_ends_the_job_at_once(claims: Claims, jobs: JobClient):
    claims.offer(claim_of("absent"))
    body = job("absent", {"model": "/models/none", "dataset": ["/data/none.jsonl"], "train_iters": 1})
    body["spec"]["command"] = ["torchrum"]
    jobs.submit(one_node_jobs.on_the_node(body))
    status = jobs.await_phase("Failed", "absent", PATIENCE_S)
    failed = next(each for each in status["conditions"] if each["type"] == "Failed")
    assert failed["reason"] == "StartupFailed"
    assert 'cannot start "torchrum": not found in $PATH' in failed["message"]
    assert status["restarts"]["total"] == 0


def test_the_end_of_the_trainer_decides_whatever_else_runs_in_its_pod(node: ControlPlane):
    """In a namespace without PodSecurity: containers of others are as others write them."""
    jobs = JobClient(plane=node, namespace=new_namespace(node, "sidecars"))
    once = {"maxRestarts": 0}
    for name, (numbers, program, others) in BESIDE_OTHERS.items():
        body = job(name, {"model": "/models/none", "dataset": ["/data/none.jsonl"], "train_iters": 1})
        body["spec"] |= {"image": TRAINER_IMAGE, "numNodes": numbers, "command": ["sh", "-c", program]}
        body["spec"] |= {"podTemplate": {"spec": {**others, "terminationGracePeriodSeconds": 1}}, "failurePolicy": once}
        del body["spec"]["checkpoint"]
        jobs.submit(body)
    jobs.await_phase("Succeeded", "mesh", PATIENCE_S)
    jobs.await_phase("Succeeded", "exporter", PATIENCE_S)
    for name, pod, (container, kind, code) in (
        ("peers", "peers-a0-worker-0", ("trainer", "Trainer", 1)),
        ("waits", "waits-a0-master-0", ("wait-nfs", "InitContainer", 2)),
    ):
        last = jobs.await_phase("Failed", name, PATIENCE_S)["lastFailure"]
        assert jobs.condition("Failed", name)["reason"] == "MaxRestartsExceeded"
        assert (last["pod"], last["container"], last["containerKind"], last["exitCode"]) == (pod, container, kind, code)
    for name in BESIDE_OTHERS:  # nothing holds GPUs once the trainers have ended
        wait_until(lambda name=name: running(jobs, name), lambda left: not left, "no container to run", PATIENCE_S)


def running(jobs: JobClient, name: str) -> list[str]:
    """Containers of the job that run."""
    statuses = [each for pod in jobs.pods(name).values() for each in pod["status"].get("containerStatuses", ())]
    return [each["name"] for each in statuses if "running" in each["state"]]


def test_the_quickstart_runs_as_its_readme_says(node: ControlPlane, tmp_path: Path):
    """Every command from the volume to the report, with a tiny model and data in place of the real ones.

    The images that the node has hold no Python packages: a policy of the cluster adds them to every pod.
    """
    claims = Claims(plane=node, namespace="default", folder=tmp_path / "volumes")
    claims.offer("quickstart-data", "ReadWriteOnce")
    one_node_jobs.provide_environment(claims)
    one_node_jobs.mount_environment_everywhere(node, "default")
    shutil.copytree(ROOT / "examples" / "quickstart", tmp_path / "examples" / "quickstart")
    data = tmp_path / ".cache" / "quickstart"
    data.mkdir(parents=True)
    tiny_model.make("llama", tmp_path).rename(data / "model")
    for name in ("train.jsonl", "validation.jsonl"):
        tiny_run.write_data(data / name, rows=32)
    report = run_readme(tmp_path, node)
    assert "quickstart" in report.read_text()
    jobs = JobClient(plane=node, namespace="default")
    assert jobs.status("quickstart")["phase"] == "Succeeded"


def run_readme(folder: Path, plane: ControlPlane) -> Path:
    """Runs the quickstart's commands for a cluster, once the operator is installed; the report that they fetch."""
    blocks = (ROOT / "examples" / "quickstart" / "README.md").read_text().split("## A cluster")[1].split("\n\n")
    lines = [line.strip() for block in blocks if block.startswith("    ") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith(("kubectl ", "sed "))]
    assert commands[0].startswith("sed ")
    assert commands[-1].endswith("report.html")
    environment = {**os.environ, "KUBECONFIG": str(plane.kubeconfig), "REGISTRY": "localhost"}
    done = subprocess.run(
        ["bash", "-exc", "\n".join(commands)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "report.html"


def test_a_container_killed_starts_again_in_its_pod_from_the_checkpoint_to_the_same_loss(
    claims: Claims, jobs: JobClient, inputs: dict[str, object], undisturbed: list[float]
):
    start(jobs, claims, "killed", inputs)
    assert await_checkpoint(claims, "killed") > 0
    before = {name: pod["metadata"]["uid"] for name, pod in jobs.pods("killed").items()}
    claims.kill("killed-a0-worker-0")
    status = jobs.await_phase("Succeeded", "killed", PATIENCE_S)
    assert (status["restarts"]["total"], status["restarts"]["counted"]) == (1, 1)
    assert (status["restarts"].get("podAttempt"), status["lastRestart"]["inPlace"]) == (0, True)
    pods = jobs.pods("killed")
    assert {name: pod["metadata"]["uid"] for name, pod in pods.items()} == before
    restarts = {name: pod["status"]["containerStatuses"][0]["restartCount"] for name, pod in pods.items()}
    assert restarts == {"killed-a0-master-0": 0, "killed-a0-worker-0": 1}
    # Which pod's end is reported first is the kubelet's affair: the killed one's, or its peer's that lost it.
    assert status["lastFailure"]["exitCode"] in (137, ExitCode.ERROR)
    assert losses(claims, "killed")[-1] == undisturbed[-1]


def test_an_evicted_pod_restarts_the_gang_uncounted_to_the_same_loss(
    claims: Claims, jobs: JobClient, inputs: dict[str, object], undisturbed: list[float]
):
    start(jobs, claims, "evicted", inputs)
    await_checkpoint(claims, "evicted")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "evicted-a0-worker-0"}}
    jobs.plane.create(jobs.path("pods", "evicted-a0-worker-0") + "/eviction", eviction)
    status = jobs.await_phase("Succeeded", "evicted", PATIENCE_S)
    assert (status["restarts"]["total"], status["restarts"]["counted"]) == (1, 0)
    assert losses(claims, "evicted")[-1] == undisturbed[-1]


def test_a_lost_node_brings_the_gang_back_on_the_other_uncounted_to_the_same_loss(
    claims: Claims, jobs: JobClient, inputs: dict[str, object], undisturbed: list[float]
):
    lost, *_ = one_node.more(claims.plane)
    lost.start(dns=one_node.GATEWAY)
    for image in (PAUSE_IMAGE, TRAINER_IMAGE):
        images.load(lost, image)
    start(jobs, claims, "moved", inputs, podTemplate=one_node_jobs.apart("moved"))
    await_checkpoint(claims, "moved")
    pods = {pod["spec"]["nodeName"]: name for name, pod in jobs.pods("moved").items()}
    assert lost.name in pods
    lost.lose()
    status = jobs.await_phase("Succeeded", "moved", PATIENCE_S)
    assert (status["restarts"]["total"], status["restarts"]["counted"]) == (1, 0)
    assert (status["lastFailure"]["node"], status["lastFailure"]["pod"]) == (lost.name, pods[lost.name])
    assert status["lastRestart"]["reason"] == "NodeLost"
    assert losses(claims, "moved")[-1] == undisturbed[-1]


def test_deleting_a_job_while_it_trains_saves_and_leaves_the_claim_alone(
    claims: Claims, jobs: JobClient, inputs: dict[str, object]
):
    start(jobs, claims, "deleted", {**inputs, "train_iters": 1_000_000, "save_interval": 1_000_000})
    wait_until(lambda: (saved(claims, "deleted") / "logging.jsonl").exists(), bool, "the first step", PATIENCE_S)
    jobs.await_phase("Running", "deleted")
    jobs.delete("deleted")
    wait_until(lambda: jobs.pods("deleted"), lambda pods: not pods, "every pod to be gone", PATIENCE_S)
    for plural in ("services", "configmaps"):
        wait_until(lambda plural=plural: jobs.names_of(plural, "deleted"), lambda left: not left, f"no {plural}")
    assert jobs.job("deleted") is None
    assert jobs.plane.get(jobs.path("persistentvolumeclaims", "deleted-checkpoint"))
    assert checkpoint(claims, "deleted") > 0


def test_an_upgrade_disturbs_no_running_job_and_uninstalling_leaves_it_and_its_data(
    claims: Claims, jobs: JobClient, inputs: dict[str, object]
):
    start(jobs, claims, "kept", {**inputs, "train_iters": 1_000_000})
    await_checkpoint(claims, "kept")
    before = {name: pod["metadata"]["uid"] for name, pod in jobs.pods("kept").items()}
    values = helm_chart.values_flags({**VALUES, "workers": 8})
    helm_chart.on_cluster(claims.plane, "upgrade", RELEASE, str(CHART), *values)
    await_operator(claims.plane)
    after_upgrade = checkpoint(claims, "kept")
    helm_chart.on_cluster(claims.plane, "uninstall", RELEASE, "--wait")
    wait_until(lambda: checkpoint(claims, "kept"), lambda now: now > after_upgrade, "one more checkpoint", PATIENCE_S)
    pods = jobs.pods("kept")
    assert {name: pod["metadata"]["uid"] for name, pod in pods.items()} == before
    assert {pod["status"]["phase"] for pod in pods.values()} == {"Running"}
    assert jobs.status("kept")["restarts"]["total"] == 0
