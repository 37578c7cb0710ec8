"""Measures the operator on a real kube-apiserver: python benchmarks/operator_scale.py [--jobs 1000] [--out FILE].

Jobs of eight pods go through creation, running, a failure storm, idling and their end, with a kill -9 on the way;
beside it a bare client creates the same objects (bare_client.py).
Control plane, kubelet stand-in and operator are processes of their own, all on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from bare_client import example_objects, rates
from operator_bench import (
    FEW_JOBS,
    PODS_PER_JOB,
    Bench,
    count,
    cpu_s,
    each,
    memory_mib,
    phases,
    start_kubelet,
    submit,
    wait,
    writes,
)

from local_cluster.control_plane import ControlPlane
from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig
from megatron_operator.cluster.kubernetes.resource import JOB, POD
from tests.support.operator import operator_process
from tests.support.operator.fake_kubelet import ended
from tests.support.operator.job_client import JobClient, new_namespace, serving
from tests.support.operator.operator_process import OperatorProcess


def pods_of_attempt(plane: ControlPlane, namespace: str, attempt: int) -> int:
    """How many pods of this attempt there are; read in full, since the server counts no labeled objects."""
    label = f"megatrontrain.dev/restart-attempt={attempt}"
    return len(plane.get(f"{POD.path(namespace)}?labelSelector={label}")["items"])


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
