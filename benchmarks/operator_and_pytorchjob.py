"""Pods created a second by this operator, by PyTorchJob and by a bare client, in one run.

    python benchmarks/operator_and_pytorchjob.py [--jobs 200] [--rounds 3]

Each contender has a control plane of its own, fresh, one after the other, round by round; jobs of eight pods, which
no one runs. PyTorchJob is measured with pods that hold nothing but a command, and with what our pods hold (volumes,
security context, grace period; the config map that ours make for each job is not made).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("operator", "trainer", ".")]

import pytorchjob_operator
from bare_client import bare_objects, example_objects
from operator_bench import PODS_PER_JOB, SUBMITTERS, Bench, count, cpu_s, each, job_body

from local_cluster.control_plane import ControlPlane
from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig
from megatron_operator.cluster.kubernetes.resource import (
    JOB,
    POD,
    Resource,
)
from tests.support.operator import operator_process
from tests.support.operator.job_client import (
    new_namespace,
    serving,
    wait_until,
)

POLL_S = 1.0
"""Between counts of pods, each of which costs the API server the more, the more pods there are."""
SETTLING_S = 3.0
COMMAND_ONLY = {"containers": [{"name": "pytorch", "image": "trainer:test", "command": ["python", "train.py"]}]}
NOT_THE_USERS = ("hostname", "subdomain", "restartPolicy", "tolerations", "serviceAccount", "priority")

Body = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one contender reached in one round; CPU until all pods are there is of operator, API server, and all parts.

    all_cpu_ms_per_job: of etcd, controllers and client too. What is bound by CPU has the inverse ratio of rates, and
    other work on the machine changes it less.
    """

    pods_per_second: float
    operator_cpu_ms_per_job: float = 0.0
    server_cpu_ms_per_job: float = 0.0
    all_cpu_ms_per_job: float = 0.0


@contextlib.contextmanager
def fresh() -> Iterator[tuple[ControlPlane, Path]]:
    """A control plane that nothing was done on yet, and a folder for logs."""
    with tempfile.TemporaryDirectory(prefix="mtj-bench-") as folder:
        for plane in serving(Path(folder) / "plane"):
            time.sleep(SETTLING_S)  # its controllers start
            yield plane, Path(folder)


def create(plane: ControlPlane, namespace: str, bodies: Sequence[tuple[Resource, Body]], parallel: int) -> None:
    """Creates all of these, so many at a time."""

    async def run() -> None:
        async with Client(from_kubeconfig(plane.kubeconfig)) as client:
            await each(list(bodies), lambda pair: client.create(pair[0], namespace, pair[1]), parallel)

    asyncio.run(run())


def timed(plane: ControlPlane, namespace: str, bodies: Sequence[tuple[Resource, Body]], operator: int) -> Outcome:
    """From the first submission of a job until its operator (a process number) has made all pods."""
    num_pods, before = len(bodies) * PODS_PER_JOB, used_s(plane, operator)
    started = time.monotonic()
    create(plane, namespace, bodies, SUBMITTERS)
    while count(plane, namespace, "pods") < num_pods:
        time.sleep(POLL_S)
    return outcome(len(bodies), time.monotonic() - started, before, used_s(plane, operator))


def used_s(plane: ControlPlane, operator: int | None) -> dict[str, float]:
    """Processor seconds of each part so far, this process as the client."""
    parts = {name: part.pid for name, part in plane.processes.items()} | {"client": os.getpid()}
    return {name: cpu_s(pid) for name, pid in (parts | ({"operator": operator} if operator else {})).items()}


def outcome(num_jobs: int, seconds: float, before: dict[str, float], after: dict[str, float]) -> Outcome:
    """The rate, and processor time by job, of so many jobs in so many seconds."""
    used_ms = {name: (after[name] - before[name]) * 1000 / num_jobs for name in before}
    return Outcome(
        pods_per_second=num_jobs * PODS_PER_JOB / seconds,
        operator_cpu_ms_per_job=used_ms.get("operator", 0.0),
        server_cpu_ms_per_job=used_ms["apiserver"],
        all_cpu_ms_per_job=sum(used_ms.values()),
    )


def ours(num_jobs: int) -> Outcome:
    """This operator."""
    with fresh() as (plane, folder):
        namespace = new_namespace(plane, "bench")
        with operator_process.running(plane.kubeconfig, folder, MTJ_WATCH_NAMESPACES=namespace) as operator:
            time.sleep(SETTLING_S)
            return timed(plane, namespace, [(JOB, job_body(index)) for index in range(num_jobs)], operator.process.pid)


def pytorchjob(num_jobs: int, pod_spec: Body) -> Outcome:
    """PyTorchJob, with pods of this spec."""
    with fresh() as (plane, folder), pytorchjob_operator.running(plane, folder) as operator:
        namespace = new_namespace(plane, "bench")
        time.sleep(SETTLING_S)
        bodies = [pytorchjob_operator.job(index, PODS_PER_JOB - 1, pod_spec) for index in range(num_jobs)]
        return timed(plane, namespace, [(pytorchjob_operator.PYTORCHJOB, body) for body in bodies], operator)


def bare_client(num_jobs: int, objects: Sequence[tuple[Resource, Body]]) -> Outcome:
    """A client that creates the objects of our jobs as they are, owner and labels included, without an operator."""
    with fresh() as (plane, _):
        namespace = new_namespace(plane, "bench")
        bodies = bare_objects(plane, namespace, list(objects), num_jobs)
        before, started = used_s(plane, None), time.monotonic()
        create(plane, namespace, bodies, parallel=32)
        return outcome(num_jobs, time.monotonic() - started, before, used_s(plane, None))


def objects_of_one_job() -> list[tuple[Resource, Body]]:
    """What this operator makes for a job."""
    with fresh() as (plane, folder):
        namespace = new_namespace(plane, "example")
        with operator_process.running(plane.kubeconfig, folder, MTJ_WATCH_NAMESPACES=namespace):
            create(plane, namespace, [(JOB, job_body(0))], 1)
            wait_until(lambda: count(plane, namespace, "pods"), lambda found: found == PODS_PER_JOB, "one job's pods")
            return example_objects(Bench(plane=plane, folder=folder, num_jobs=1), namespace)


def same_pod(objects: Sequence[tuple[Resource, Body]]) -> Body:
    """Our pod's spec as a user would write it into a PyTorchJob: without what its operator sets itself."""
    spec = next(body["spec"] for resource, body in objects if resource is POD)
    (container,) = spec["containers"]
    kept = {name: value for name, value in container.items() if name not in ("env", "ports")}
    return {
        **{name: value for name, value in spec.items() if name not in NOT_THE_USERS},
        "containers": [{**kept, "name": "pytorch"}],
    }


def main() -> None:
    """Runs every contender round by round and prints each, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    objects = objects_of_one_job()
    contenders: dict[str, Callable[[], Outcome]] = {
        "this operator": lambda: ours(options.jobs),
        "PyTorchJob": lambda: pytorchjob(options.jobs, COMMAND_ONLY),
        "PyTorchJob, our pods": lambda: pytorchjob(options.jobs, same_pod(objects)),
        "bare client, our objects": lambda: bare_client(options.jobs, objects),
    }
    found: dict[str, list[Outcome]] = {name: [] for name in contenders}
    print(f"{'':<26} {'pods/s':>7} {'operator ms/job':>16} {'server ms/job':>14} {'all ms/job':>11}")
    for _ in range(options.rounds):
        for name, run in contenders.items():
            reached = run()
            found[name].append(reached)
            cpu = f"{reached.operator_cpu_ms_per_job:>16.1f} {reached.server_cpu_ms_per_job:>14.1f}"
            print(f"{name:<26} {reached.pods_per_second:>7.0f} {cpu} {reached.all_cpu_ms_per_job:>11.1f}", flush=True)
    rates = {name: statistics.median(each.pods_per_second for each in all_) for name, all_ in found.items()}
    cpu_ms = {name: statistics.median(each.all_cpu_ms_per_job for each in all_) for name, all_ in found.items()}
    for name, rate in rates.items():
        by_rate, by_cpu = rates["this operator"] / rate, cpu_ms[name] / cpu_ms["this operator"]
        print(f"median {name:<26} {rate:>7.0f} pods/s; this operator: {by_rate:.2f} times, {by_cpu:.2f} by CPU time")


if __name__ == "__main__":
    main()
