"""The jobs that recovery_on_node.py measures: this operator's and its peers', of the same two pods.

Each is in a namespace of its own, with the same image, packages, model and arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jobset_operator
import pytorchjob_operator
import trainjob_operator

from local_cluster import images, one_node, one_node_jobs
from local_cluster.control_plane import ControlPlane
from local_cluster.kube_node import descendants
from local_cluster.one_node_jobs import Claims
from tests.support.models import tiny_model
from tests.support.operator.job_client import JobClient, manifest
from tests.support.ranks import tiny_run

INPUTS, CHECKPOINTS, AGENT = "/inputs", "/checkpoints", "/agent"
TRAINER = ["python", "-m", "megatron_trainer", "sft", "--config", f"{INPUTS}/args.yaml"]
PORT = 29500
SOON = {"spec": {"terminationGracePeriodSeconds": 5}}

Object = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One job. save: where its trainer writes. start: creates it. status: ours of the job, {} of the others."""

    name: str
    plane: ControlPlane
    save: Path
    start: Callable[[], None]
    ways: tuple[str, ...] = ("rank",)
    status: Callable[[], Object] = field(default=dict)

    @property
    def pods(self) -> dict[str, Object]:
        """The pods that are there, by name."""
        items = self.plane.get(f"/api/v1/namespaces/{self.name}/pods")["items"]
        return {each["metadata"]["name"]: each for each in items if "deletionTimestamp" not in each["metadata"]}

    @property
    def log(self) -> Path | None:
        """The trainer's log."""
        return next(iter(self.save.rglob("logging.jsonl")), None)

    def pids(self) -> list[int]:
        """First processes of the containers that run."""
        tasks, found = one_node.tasks(self.plane), []
        for pod in self.pods.values():
            for each in pod["status"].get("containerStatuses", ()):
                found.append(tasks.get(each.get("containerID", "").removeprefix("containerd://"), 0))
        return [pid for pid in found if pid]

    def signal(self, number: signal.Signals) -> None:
        """To every Python process of its pods."""
        for first in self.pids():
            for pid in (first, *descendants(first)):
                if b"python" in command_of(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)


def command_of(pid: int) -> bytes:
    """The command line of a process, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def pod_spec(folder: Path, name: str, agent: Path) -> Object:
    """What the pods of peers hold: the same image and folders as ours."""
    environment = {
        "PYTHONPATH": images.ENVIRONMENT,
        "NNODES": "2",
        "NPROC_PER_NODE": "1",
        "MASTER_PORT": str(PORT),
        "MASTER_ADDR": "job-r-0-0.job",
        "MTJ_JOB_NAME": name,
        "MTJ_JOB_UID": name,
        "MTJ_RESUME": "Auto",
        "MTJ_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    paths = {
        images.ENVIRONMENT: images.SITE_PACKAGES,
        INPUTS: folder / "inputs",
        CHECKPOINTS: folder / "volumes" / name,
        AGENT: agent.parent,
    }
    names = {path: path.strip("/") for path in paths}
    mounts = [{"name": names[path], "mountPath": path} for path in paths]
    container = {
        "name": "pytorch",
        "image": images.TRAINER_IMAGE,
        "imagePullPolicy": "Never",
        "command": TRAINER,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "volumeMounts": mounts,
    }
    volumes = [{"name": names[path], "hostPath": {"path": str(source)}} for path, source in paths.items()]
    return {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": 5}


def write_inputs(folder: Path) -> None:
    """Of every contender: a tiny random Llama, a few conversations, and the arguments, as the pods see them."""
    inputs = folder / "inputs"
    inputs.mkdir()
    model = tiny_model.make("llama", inputs)
    (model / "model.safetensors").chmod(0o644)
    data = tiny_run.write_data(inputs / "train.jsonl")
    given = tiny_run.arguments(model, data, Path(CHECKPOINTS) / "run", train_iters=1_000_000, save_interval=5)
    text = json.dumps({name: value for name, value in given.items() if value is not None}, default=str)
    (inputs / "args.yaml").write_text(text.replace(str(inputs), INPUTS))


def ours(plane: ControlPlane, folder: Path, name: str = "ours", template: Object = SOON, **policy: object) -> Contender:
    """This operator's job; each kind of failure takes the rung that it finds."""
    claims = Claims(plane=plane, namespace=name, folder=folder / "volumes" / name)
    jobs = JobClient(plane=plane, namespace=name)

    def start() -> None:
        one_node_jobs.provide_environment(claims)
        claims.provide("inputs", folder / "inputs")
        claims.offer("saved")
        claim = {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "resources": {"requests": one_node_jobs.SIZE},
        }
        plane.create(jobs.path("persistentvolumeclaims"), {"metadata": {"name": "saved"}, "spec": claim})
        given = json.loads((folder / "inputs" / "args.yaml").read_text())
        body = manifest(
            args={key: value for key, value in given.items() if key not in ("save", "add_version")},
            checkpoint={"pvc": {"claimName": "saved"}, "mountPath": CHECKPOINTS},
            failurePolicy={"maxRestarts": 1000, **policy},
            podTemplate=template,
        )
        jobs.submit(one_node_jobs.on_the_node(body, read={INPUTS: "inputs"}))

    return Contender(name=name, plane=plane, save=claims.folder, start=start, status=jobs.status)


def peer(plane: ControlPlane, folder: Path, name: str, create: Callable[[Object], None]) -> Contender:
    """A peer's job of the same two pods."""
    save = folder / "volumes" / name
    save.mkdir(parents=True)
    save.chmod(0o777)
    agent = jobset_operator.find_or_get() / jobset_operator.AGENT
    spec = pod_spec(folder, name, agent)
    return Contender(name=name, plane=plane, save=save, start=lambda: create(spec))


def chosen(plane: ControlPlane, folder: Path, options: argparse.Namespace) -> Iterator[Contender]:
    """Those asked for, in the order in which they take turns."""
    write_inputs(folder)

    def recreate(spec: Object) -> None:
        body = jobset_operator.job(spec, TRAINER, in_place=False)
        plane.create(f"{jobset_operator.API}/namespaces/recreate/jobsets", body)

    def in_place(spec: Object) -> None:
        jobset_operator.allow_agent(plane, "inplace")
        body = jobset_operator.job(spec, TRAINER, in_place=True)
        plane.create(f"{jobset_operator.API}/namespaces/inplace/jobsets", body)

    def pytorchjob(spec: Object) -> None:
        line = f"NODE_RANK=$RANK NNODES=2 MASTER_ADDR=job-0-master-0 exec {' '.join(TRAINER)}"
        (container,) = spec["containers"]
        body = pytorchjob_operator.job(0, 1, {**spec, "containers": [{**container, "command": ["sh", "-c", line]}]})
        for each in body["spec"]["pytorchReplicaSpecs"].values():
            each["restartPolicy"] = "OnFailure"
        plane.create("/apis/kubeflow.org/v1/namespaces/pytorchjob/pytorchjobs", body)

    def trainjob(spec: Object) -> None:
        names = ("NODE_RANK", "NNODES", "MASTER_ADDR")
        line = " ".join([*(f"{name}=$PET_{name}" for name in names), "exec", *TRAINER])
        plane.create(f"{trainjob_operator.API}/clustertrainingruntimes", trainjob_operator.runtime(spec))
        body = trainjob_operator.job(["sh", "-c", line])
        plane.create(f"{trainjob_operator.API}/namespaces/trainjob/trainjobs", body)

    creates = {"recreate": recreate, "inplace": in_place, "pytorchjob": pytorchjob, "trainjob": trainjob}
    for name in options.contenders:
        plane.create("/api/v1/namespaces", {"metadata": {"name": name}})
        if name == "ours":
            made = ours(plane, folder)
            yield Contender(**{**vars(made), "ways": tuple(options.ways)})
        else:
            yield peer(plane, folder, name, creates[name])
