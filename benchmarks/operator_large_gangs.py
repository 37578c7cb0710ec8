"""Measures the operator with large gangs: python benchmarks/operator_large_gangs.py [--jobs 100] [--nodes 512].

Jobs of many pods on a real kube-apiserver, whose pods a kubelet stand-in runs: the rate at which pods are made, memory
and processor time of the operator meanwhile, and that every gang is whole and runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from operator_bench import Bench, count, cpu_s, each, job_body, memory_mib, phases, start_kubelet, wait, writes

from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig
from megatron_operator.cluster.kubernetes.resource import JOB
from tests.support.operator import operator_process
from tests.support.operator.job_client import ARGS, new_namespace, serving
from tests.support.operator.operator_process import OperatorProcess

LIMIT_S = 3600.0


def body(index: int, num_nodes: int) -> dict:
    """One job of so many pods."""
    small = job_body(index)
    args = {**ARGS, "global_batch_size": num_nodes}
    return {**small, "spec": {**small["spec"], "numNodes": num_nodes, "args": args}}


def submit(bench: Bench, namespace: str, num_nodes: int) -> None:
    """Submits the jobs."""

    async def run() -> None:
        async with Client(from_kubeconfig(bench.plane.kubeconfig)) as client:
            await each(list(range(bench.num_jobs)), lambda index: client.create(JOB, namespace, body(index, num_nodes)))

    asyncio.run(run())


def note_state(bench: Bench, operator: OperatorProcess, moment: str) -> None:
    """Memory of operator and control plane, and the operator's processor time so far."""
    process = operator.process.pid
    bench.note(f"operator_mib_{moment}", memory_mib(process))
    bench.note(f"operator_peak_mib_{moment}", memory_mib(process, "VmHWM"))
    bench.note(f"operator_cpu_s_{moment}", cpu_s(process))
    for name, part in bench.plane.processes.items():
        bench.note(f"{name}_mib_{moment}", memory_mib(part.pid))


def measure(bench: Bench, num_nodes: int) -> None:
    """Creation, until all run, and a restart of the operator with everything there."""
    namespace, num_pods = new_namespace(bench.plane, "large"), bench.num_jobs * num_nodes
    kubelet = start_kubelet(bench, namespace)
    with operator_process.running(bench.plane.kubeconfig, bench.folder, MTJ_WATCH_NAMESPACES=namespace) as operator:
        note_state(bench, operator, "idle")
        started = time.monotonic()
        submit(bench, namespace, num_nodes)
        wait(lambda: count(bench.plane, namespace, "pods") >= num_pods, LIMIT_S, every_s=1)
        bench.note("pods_per_second", num_pods / (time.monotonic() - started))
        note_state(bench, operator, "created")
        wait(lambda: phases(bench.plane, namespace) == {"Running": bench.num_jobs}, LIMIT_S, every_s=2)
        bench.note("all_running_s", time.monotonic() - started)
        note_state(bench, operator, "running")
        bench.note("pods_too_many", count(bench.plane, namespace, "pods") - num_pods)
        bench.note("writes_per_job_but_pods", sum(writes(operator).values()) / bench.num_jobs - num_nodes)
    again(bench, namespace)
    kubelet.terminate()


def again(bench: Bench, namespace: str) -> None:
    """The next operator lists everything, and has nothing to do."""
    started = time.monotonic()
    with operator_process.running(bench.plane.kubeconfig, bench.folder, MTJ_WATCH_NAMESPACES=namespace) as operator:
        wait(lambda: operator.metric("megatron_operator_reconcile_seconds_count") >= bench.num_jobs, every_s=0.2)
        bench.note("restart_to_synced_s", time.monotonic() - started)
        note_state(bench, operator, "restarted")
        bench.note("restart_writes", sum(writes(operator).values()))


def main() -> None:
    """Runs it and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=512)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mtj-bench-") as folder:
        for plane in serving(Path(folder) / "plane"):
            bench = Bench(plane=plane, folder=Path(folder), num_jobs=options.jobs)
            bench.note("when", datetime.now(UTC).isoformat(timespec="seconds"))
            bench.note("machine", f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
            bench.note("jobs", f"{options.jobs} of {options.nodes} pods")
            measure(bench, options.nodes)
    if options.out:
        options.out.write_text(json.dumps(bench.found, indent=2) + "\n")


if __name__ == "__main__":
    main()
