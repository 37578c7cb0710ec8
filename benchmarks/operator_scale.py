"""Measures the operator on a real kube-apiserver: python benchmarks/operator_scale.py [--jobs 1000] [--out FILE].

Jobs of eight pods go through creation, running, a failure storm, idling and their end, with a kill -9 on the way;
beside it the rate at which a bare client creates the same objects, on the same server in the same run: once with the
kubelet stand-in at work on its pods, as it is on the operator's, and once with pods that no one runs, as the operator
is measured once more.
Control plane, kubelet stand-in and operator are processes of their own, all on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("operator", "trainer", ".")]

from local_cluster.control_plane import ControlPlane
from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig
from megatron_operator.cluster.kubernetes.resource import CONFIG_MAP, JOB, POD, SERVICE, Resource
from tests.support.operator import operator_process
from tests.support.operator.fake_kubelet import FakeKubelet, Life, ended
from tests.support.operator.job_client import API, ARGS, JobClient, manifest, new_namespace, serving
from tests.support.operator.operator_process import OperatorProcess

PODS_PER_JOB = 8
SUBMITTERS = 8
FEW_JOBS = 200
SETTLING_S = 3.0
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


def pods_of_attempt(plane: ControlPlane, namespace: str, attempt: int) -> int:
    """How many pods of this attempt there are; read in full, since the server counts no labeled objects."""
    label = f"megatrontrain.dev/restart-attempt={attempt}"
    return len(plane.get(f"{POD.path(namespace)}?labelSelector={label}")["items"])


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


def rates(bench: Bench, example: list[tuple]) -> None:
    """What a bare client reaches and the operator's share of it: with pods that run, and that no one runs."""
    for suffix, run in (("", True), ("_of_pods_not_run", False)):
        ours = bench.found["pods_per_second"] if run else created_rate(bench)
        assert isinstance(ours, float)
        raw = raw_rate(bench, example, run=run)
        if not run:
            bench.note(f"pods_per_second{suffix}", ours)
        bench.note(f"raw_client_pods_per_second{suffix}", raw)
        bench.note(f"operator_per_raw_client{suffix}", ours / raw)


def created_rate(bench: Bench) -> float:
    """Pods a second from the first submission until all exist, where no kubelet costs the server anything."""
    namespace, num_jobs = new_namespace(bench.plane, "created"), min(FEW_JOBS, bench.num_jobs)
    with operator_process.running(bench.plane.kubeconfig, bench.folder, MTJ_WATCH_NAMESPACES=namespace):
        started = time.monotonic()
        submit(bench, namespace, num_jobs)
        wait(lambda: count(bench.plane, namespace, "pods") >= num_jobs * PODS_PER_JOB, every_s=0.1)
        rate = num_jobs * PODS_PER_JOB / (time.monotonic() - started)
    bench.plane.delete(f"/api/v1/namespaces/{namespace}")
    time.sleep(SETTLING_S)
    return rate


def raw_rate(bench: Bench, example: list[tuple], *, run: bool) -> float:
    """Pods a second that a bare client creates, with a service and a config map for every eight.

    run: the kubelet stand-in makes them run meanwhile, which costs the server as much as creating them.
    """
    namespace, num_jobs = new_namespace(bench.plane, "raw"), min(FEW_JOBS, bench.num_jobs)
    kubelet = start_kubelet(bench, namespace) if run else None
    time.sleep(SETTLING_S)
    bodies = bare_objects(bench.plane, namespace, example, num_jobs)

    async def create_all() -> float:
        async with Client(from_kubeconfig(bench.plane.kubeconfig)) as client:
            started = time.monotonic()
            await each(bodies, lambda pair: client.create(pair[0], namespace, pair[1]), parallel=32)
            return num_jobs * PODS_PER_JOB / (time.monotonic() - started)

    rate = asyncio.run(create_all())
    if kubelet:
        kubelet.terminate()
    bench.plane.delete(f"/api/v1/namespaces/{namespace}")
    time.sleep(SETTLING_S)
    return rate


def example_objects(bench: Bench, namespace: str) -> list[tuple]:
    """The objects of one job as the operator made them, to be made again by a bare client."""
    label = "?labelSelector=megatrontrain.dev/job-name=job-0"
    return [
        (resource, _as_made(resource, raw))
        for resource in (CONFIG_MAP, SERVICE, POD)
        for raw in bench.plane.get(resource.path(namespace) + label)["items"]
    ]


def _as_made(resource: Resource, raw: dict) -> dict:
    """The object without what the server added; labels, annotations and the owner cost the server time, too."""
    kept = {key: raw["metadata"][key] for key in ("labels", "annotations", "ownerReferences") if key in raw["metadata"]}
    body = {"metadata": {"name": raw["metadata"]["name"], **kept}}
    if resource is CONFIG_MAP:
        return {**body, "data": raw["data"]}
    of_server = ("nodeName", "clusterIP", "clusterIPs")
    spec = {key: value for key, value in raw["spec"].items() if key not in of_server}
    return {**body, "spec": {**spec, **({"clusterIP": "None"} if resource is SERVICE else {})}}


def bare_objects(plane: ControlPlane, namespace: str, example: list[tuple], num_jobs: int) -> list[tuple]:
    """The objects of so many jobs for a bare client, all owned by one job that no operator reconciles."""
    asyncio.run(_create(plane, namespace, job_body(0)))
    uid = plane.get(f"{JOB.path(namespace)}/job-0")["metadata"]["uid"]
    return [(resource, _named(body, index, uid)) for index in range(num_jobs) for resource, body in example]


async def _create(plane: ControlPlane, namespace: str, body: dict) -> None:
    async with Client(from_kubeconfig(plane.kubeconfig)) as client:
        await client.create(JOB, namespace, body)


def _named(body: dict, index: int, owner_uid: str) -> dict:
    """The object as one of the job with this index: a service that selects its eight pods, and no others."""
    own = json.loads(json.dumps(body).replace("job-0", f"job-{index}"))
    owners = [{**owner, "name": "job-0", "uid": owner_uid} for owner in body["metadata"]["ownerReferences"]]
    return {**own, "metadata": {**own["metadata"], "ownerReferences": owners}}


def creation(bench: Bench, namespace: str, operator: OperatorProcess) -> None:
    """From the first submission until every pod exists, and until every job runs."""
    total, server = bench.num_jobs * PODS_PER_JOB, bench.plane.processes["apiserver"].pid
    started, cpu_before, server_before = time.monotonic(), cpu_s(operator.process.pid), cpu_s(server)
    submit(bench, namespace, bench.num_jobs)
    bench.note("submitted_s", time.monotonic() - started)
    wait(lambda: count(bench.plane, namespace, "pods") >= total)
    created_s = time.monotonic() - started
    bench.note("all_pods_created_s", created_s)
    bench.note("pods_per_second", total / created_s)
    bench.note("load_average_at_creation", os.getloadavg()[0])
    wait(lambda: phases(bench.plane, namespace) == {"Running": bench.num_jobs}, every_s=2)
    bench.note("all_running_s", time.monotonic() - started)
    bench.note(
        "operator_cpu_ms_per_job_until_running", 1000 * (cpu_s(operator.process.pid) - cpu_before) / bench.num_jobs
    )
    bench.note("server_cpu_ms_per_job_until_running", 1000 * (cpu_s(server) - server_before) / bench.num_jobs)
    bench.note("start_latency_s", latencies(bench, namespace))


def latencies(bench: Bench, namespace: str) -> dict[str, float]:
    """Seconds from a job's creation to its last pod's, by the server's clock (whole seconds)."""
    parse = datetime.fromisoformat
    last: dict[str, datetime] = {}
    for pod in bench.plane.get(POD.path(namespace))["items"]:
        name, at = pod["metadata"]["labels"]["megatrontrain.dev/job-name"], parse(pod["metadata"]["creationTimestamp"])
        last[name] = max(at, last.get(name, at))
    jobs = bench.plane.get(JOB.path(namespace))["items"]
    seconds = sorted(
        (last[job["metadata"]["name"]] - parse(job["metadata"]["creationTimestamp"])).total_seconds() for job in jobs
    )
    return {"p50": statistics.median(seconds), "p99": seconds[int(len(seconds) * 0.99)]}


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


def idling(bench: Bench, operator: OperatorProcess, seconds: float = 30) -> None:
    """Writes and processor use while every job runs and says nothing."""
    before, cpu_before = sum(writes(operator).values()), cpu_s(operator.process.pid)
    time.sleep(seconds)
    bench.note("idle_writes_per_minute", (sum(writes(operator).values()) - before) * 60 / seconds)
    bench.note("idle_cpu_percent", 100 * (cpu_s(operator.process.pid) - cpu_before) / seconds)


def storm(bench: Bench, namespace: str) -> None:
    """One pod of many jobs fails at once; until every gang runs again."""
    num = min(FEW_JOBS, bench.num_jobs)
    client = JobClient(plane=bench.plane, namespace=namespace)

    async def fail() -> None:
        async with Client(from_kubeconfig(bench.plane.kubeconfig)) as api:

            async def one(index: int) -> None:
                pod = await api.get(POD, namespace, f"job-{index}-a0-worker-3")
                await api.patch(
                    POD, namespace, pod["metadata"]["name"], {"status": ended(pod, 137)}, subresource="status"
                )

            await each(list(range(num)), one)

    started = time.monotonic()
    asyncio.run(fail())
    wait(lambda: pods_of_attempt(bench.plane, namespace, 1) >= num * PODS_PER_JOB, every_s=1)
    bench.note("storm_200_jobs_new_pods_s", time.monotonic() - started)
    wait(lambda: phases(bench.plane, namespace).get("Running") == bench.num_jobs, every_s=2)
    bench.note("storm_200_jobs_running_s", time.monotonic() - started)
    assert client.status("job-0")["restarts"]["total"] == 1


def restart(bench: Bench, namespace: str, operator: OperatorProcess) -> OperatorProcess:
    """kill -9 with everything running; until the next operator has listed and looked at every job."""
    operator.kill()
    started = time.monotonic()
    again = operator_process.start(bench.plane.kubeconfig, bench.folder, MTJ_WATCH_NAMESPACES=namespace)
    wait(again.is_ready, every_s=0.1)
    wait(lambda: again.metric("megatron_operator_reconcile_seconds_count") >= bench.num_jobs, every_s=0.1)
    bench.note("restart_to_synced_s", time.monotonic() - started)
    bench.note("restart_writes", sum(writes(again).values()))
    return again


def finish(bench: Bench, namespace: str) -> None:
    """Every pod succeeds; until every job has."""

    async def end_all() -> None:
        async with Client(from_kubeconfig(bench.plane.kubeconfig)) as api:
            names = [pod for pod in bench.plane.get(POD.path(namespace))["items"]]

            async def one(pod: dict) -> None:
                await api.patch(
                    POD, namespace, pod["metadata"]["name"], {"status": ended(pod, 0)}, subresource="status"
                )

            await each(names, one, parallel=32)

    started = time.monotonic()
    asyncio.run(end_all())
    wait(lambda: phases(bench.plane, namespace) == {"Succeeded": bench.num_jobs}, every_s=1)
    bench.note("all_succeeded_s", time.monotonic() - started)


def happy_path(bench: Bench) -> None:
    """Writes and processor time of a life without incident, on an operator of its own."""
    namespace = new_namespace(bench.plane, "bench")
    kubelet = start_kubelet(bench, namespace)
    with operator_process.running(bench.plane.kubeconfig, bench.folder, MTJ_WATCH_NAMESPACES=namespace) as operator:
        creation(bench, namespace, operator)
        idling(bench, operator)
        bench.note("rss_mib", memory_mib(operator.process.pid))
        bench.note("rss_peak_mib", memory_mib(operator.process.pid, "VmHWM"))
        rates(bench, example_objects(bench, namespace))
        bench.note("load_average_of_raw_client", os.getloadavg()[0])
        finish(bench, namespace)
        tally = writes(operator)
        bench.note("writes_per_job", sum(tally.values()) / bench.num_jobs)
        bench.note("writes_per_job_by_kind", {name: round(value / bench.num_jobs, 2) for name, value in tally.items()})
        bench.note("operator_cpu_ms_per_job", 1000 * cpu_s(operator.process.pid) / bench.num_jobs)
    kubelet.terminate()
    bench.plane.delete(f"/api/v1/namespaces/{namespace}")


def incidents(bench: Bench) -> None:
    """A kill -9 in the middle of creation, a failure storm, and a kill -9 with everything running."""
    namespace, total = new_namespace(bench.plane, "incidents"), bench.num_jobs * PODS_PER_JOB
    kubelet = start_kubelet(bench, namespace)
    first = operator_process.start(bench.plane.kubeconfig, bench.folder, MTJ_WATCH_NAMESPACES=namespace)
    operator_process.wait_ready(first)
    submit(bench, namespace, bench.num_jobs)
    wait(lambda: count(bench.plane, namespace, "pods") >= total // 2, every_s=0.1)
    first.kill()
    started = time.monotonic()
    second = operator_process.start(bench.plane.kubeconfig, bench.folder, MTJ_WATCH_NAMESPACES=namespace)
    wait(lambda: phases(bench.plane, namespace) == {"Running": bench.num_jobs}, every_s=1)
    bench.note("killed_midway_all_running_s", time.monotonic() - started)
    bench.note("killed_midway_pods_too_many", count(bench.plane, namespace, "pods") - total)
    storm(bench, namespace)
    restart(bench, namespace, second).kill()
    kubelet.terminate()


def main() -> None:
    """Runs everything and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mtj-bench-") as folder:
        for plane in serving(Path(folder) / "plane"):
            bench = Bench(plane=plane, folder=Path(folder), num_jobs=options.jobs)
            bench.note("when", datetime.now(UTC).isoformat(timespec="seconds"))
            bench.note(
                "machine",
                f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            )
            bench.note("jobs", options.jobs)
            happy_path(bench)
            incidents(bench)
    if options.out:
        options.out.write_text(json.dumps(bench.found, indent=2) + "\n")


if __name__ == "__main__":
    main()
