"""What benchmarks of the operator share: jobs of eight pods, a kubelet stand-in for them, and what all of it costs."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("operator", "trainer", ".")]

from local_cluster.control_plane import ControlPlane
from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig
from megatron_operator.cluster.kubernetes.resource import JOB
from tests.support.operator.fake_kubelet import FakeKubelet, Life
from tests.support.operator.job_client import API, ARGS, manifest
from tests.support.operator.operator_process import OperatorProcess

PODS_PER_JOB = 8
SUBMITTERS = 8
FEW_JOBS = 200
WRITES = ("create", "update", "patch", "delete")


@dataclass(kw_only=True)
class Bench:
    """One run: where it happens and what was found."""

    plane: ControlPlane
    folder: Path
    num_jobs: int
    found: dict[str, object] = field(default_factory=dict)

    def note(self, name: str, value: object) -> None:
        """Keeps and shows one result."""
        self.found[name] = round(value, 3) if isinstance(value, float) else value
        print(f"{name:<44} {self.found[name]}", flush=True)


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int, name: str = "VmRSS") -> float:
    """Resident memory of a process; VmHWM is its peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def count(plane: ControlPlane, namespace: str, plural: str) -> int:
    """How many objects there are, without reading them."""
    root = f"{API}/namespaces" if plural == "megatrontrainjobs" else "/api/v1/namespaces"
    page = plane.get(f"{root}/{namespace}/{plural}?limit=1")
    return len(page["items"]) + page["metadata"].get("remainingItemCount", 0)


def phases(plane: ControlPlane, namespace: str) -> dict[str, int]:
    """How many jobs are in which phase."""
    tally: dict[str, int] = {}
    for job in plane.get(f"{API}/namespaces/{namespace}/megatrontrainjobs")["items"]:
        phase = (job.get("status") or {}).get("phase", "")
        tally[phase] = tally.get(phase, 0) + 1
    return tally


def wait(wanted: Callable[[], bool], limit_s: float = 600, every_s: float = 0.5) -> float:
    """Seconds until it was so; raises when it takes too long."""
    started = time.monotonic()
    while not wanted():
        if time.monotonic() - started > limit_s:
            raise TimeoutError(f"not within {limit_s} s")
        time.sleep(every_s)
    return time.monotonic() - started


def run_kubelet(kubeconfig: Path, namespace: str) -> None:
    """Body of the kubelet's process."""
    life = Life()
    asyncio.run(FakeKubelet(kubeconfig=kubeconfig, namespace=namespace, placing="none", life=lambda pod: life).run())


def start_kubelet(bench: Bench, namespace: str) -> multiprocessing.Process:
    """A kubelet stand-in that makes every pod of the namespace run."""
    process = multiprocessing.Process(target=run_kubelet, args=(bench.plane.kubeconfig, namespace), daemon=True)
    process.start()
    return process


async def each(items: list, work: Callable, parallel: int = SUBMITTERS) -> None:
    """Runs `work` on every item, so many at a time."""
    todo = iter(items)

    async def worker() -> None:
        for item in todo:
            await work(item)

    await asyncio.gather(*(worker() for _ in range(parallel)))


def job_body(index: int) -> dict:
    """One job of eight pods that saves to a volume which is there already; nothing about it is worth a warning."""
    args = {**ARGS, "global_batch_size": PODS_PER_JOB}
    volume = {"pvc": {"claimName": "shared"}}
    return {**manifest(f"job-{index}", numNodes=PODS_PER_JOB, args=args, checkpoint=volume)}


def submit(bench: Bench, namespace: str, num_jobs: int) -> None:
    """Submits so many jobs."""

    async def run() -> None:
        async with Client(from_kubeconfig(bench.plane.kubeconfig)) as client:
            await each(list(range(num_jobs)), lambda index: client.create(JOB, namespace, job_body(index)))

    asyncio.run(run())


def writes(operator: OperatorProcess) -> dict[str, float]:
    """Requests of the operator by verb, resource and code that change something."""
    tally = {}
    for line in operator.read("/metrics").splitlines():
        if line.startswith("megatron_operator_api_requests_total"):
            labels, value = line.split("{")[1].rsplit("} ", 1)
            pairs = dict(pair.split("=") for pair in labels.replace('"', "").split(","))
            if pairs["verb"] in WRITES:
                tally[f"{pairs['verb']} {pairs['resource']} {pairs['code']}"] = float(value)
    return tally
