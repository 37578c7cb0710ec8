"""What a restart costs the API server, and how long the operator takes for it: in place, and as a new gang.

    python benchmarks/recovery_requests.py [--kills 10] [--nodes 2] [--ways "in place" "container" "new gang" "deleted"]

in place: a rank is killed. container: its launcher, which the kubelet starts again. new gang: its launcher, where the
pod ends with it. deleted: its pod.

A real kube-apiserver with the real operator; a stand-in for the kubelet says that the pods run, and real launchers with
a small counting program as their ranks report for them. The ways take turns in one job. Starting containers, imports,
process groups and checkpoints are not part of it: recovery.py measures those.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / part) for part in ("operator", "trainer", ".")]

from operator_bench import writes

from megatron_operator.timestamp import to_seconds
from tests.support.operator import fake_kubelet, operator_process
from tests.support.operator.fake_kubelet import FakeKubelet
from tests.support.operator.job_client import JobClient, manifest, new_namespace, serving, wait_until
from tests.support.operator.launched_pods import launched
from tests.support.operator.operator_process import OperatorProcess
from tests.support.operator.progress_client import TRAINING, pod_token, push, push_settings, variables

PHASES = ("detected", "decided", "ranksStarted", "firstStep")
QUIET_S = 2.5  # until what the status has to say of a restart is written
POLICY = {"maxRestarts": 1000}
KUBELET_S = 1.0
"""What a kubelet takes to notice that a container has ended, and again until it has started it again: a guess."""
WAYS = ("in place", "container", "new gang", "deleted")
STAYS = ("in place", "container")
"""Those after which the pods are the same."""


@dataclass(kw_only=True)
class Measurement:
    """Seconds since the kill by phase, and requests that change something, by verb and resource."""

    way: str
    seconds: dict[str, float]
    requests: Counter[str]


def pods_of(attempt: int, nodes: int) -> list[str]:
    """Names of a gang's pods."""
    workers = [f"job-a{attempt}-worker-{index}" for index in range(nodes - 1)]
    return [f"job-a{attempt}-master-0", *workers]


def changes(operator: OperatorProcess) -> Counter[str]:
    """Requests so far, whatever their answer."""
    found: Counter[str] = Counter()
    for name, value in writes(operator).items():
        found[name.rpartition(" ")[0]] += int(value)
    return found


class Gangs:
    """The launchers of the present pods of one job; a new gang gets new ones."""

    def __init__(self, jobs: JobClient, folder: Path, nodes: int) -> None:
        self.jobs, self.folder, self.nodes = jobs, folder, nodes
        self.stack = contextlib.ExitStack()
        self.checkpoint = 0
        self.start()

    @property
    def restarts(self) -> dict:
        return self.jobs.status().get("restarts", {})

    def start(self) -> None:
        """Launches the pods of this attempt once they run."""
        self.stack.close()
        attempt = self.restarts.get("attempt", 0)
        self.names = pods_of(attempt, self.nodes)
        wait_until(self.are_running, bool, "running pods")
        options = ("--steps", "1000000", "--step-s", "0.05")
        self.pods = self.stack.enter_context(launched(self.jobs, self.folder, self.names, *options))

    def progress(self) -> None:
        """Reports a newer checkpoint, without which the next restart would have a back-off."""
        self.checkpoint += 5
        url, token = (
            variables(self.jobs, self.names[0])["KUBEFLOW_TRAINER_SERVER_URL"],
            pod_token(self.jobs, self.names[0]),
        )
        attempt = self.restarts.get("attempt", 0)
        body = {"progress": {**TRAINING, "iteration": self.checkpoint, "checkpoint_iteration": self.checkpoint}}
        wait_until(lambda: push(self.jobs, f"{url}?attempt={attempt}", token, body), lambda code: code == 200, "a push")
        wait_until(self.saved, lambda step: step == self.checkpoint, "status.checkpoint")

    def saved(self) -> int | None:
        """The iteration of the newest checkpoint in the status."""
        return self.jobs.status().get("checkpoint", {}).get("latestIteration")

    def are_running(self) -> bool:
        """Whether the kubelet's stand-in has started all pods."""
        pods = self.jobs.pods()
        return all(name in pods and pods[name]["status"].get("phase") == "Running" for name in self.names)

    def kill(self, way: str) -> float:
        """Kills the last rank, or the last pod's launcher; when."""
        killed_at = time.time()
        if way == "in place":
            os.kill(self.pods[-1].rank, signal.SIGKILL)
            return killed_at
        self.pods[-1].process.kill()
        self.pods[-1].process.wait()
        if way == "container":
            self.restart_container()
        elif way == "deleted":
            self.jobs.plane.delete(self.jobs.path("pods", self.names[-1]))
        else:
            self.jobs.end_pod(self.names[-1], 137)
        return killed_at

    def restart_container(self) -> None:
        """What the kubelet does about the last pod's container."""
        time.sleep(KUBELET_S)
        self.jobs.end_container(self.names[-1], 137)
        time.sleep(KUBELET_S)
        self.pods[-1] = self.pods[-1].started_again()
        self.jobs.restart_container(self.names[-1])


def restart(gangs: Gangs, operator: OperatorProcess, way: str) -> Measurement:
    """One kill, until the first step of the next attempt is known."""
    gangs.progress()
    time.sleep(QUIET_S)
    attempt, before = gangs.restarts.get("attempt", 0), changes(operator)
    killed_at = gangs.kill(way)
    wait_until(lambda: gangs.restarts.get("attempt", 0), lambda found: found == attempt + 1, "the next attempt")
    if way not in STAYS:
        gangs.start()
    done = wait_until(lambda: gangs.jobs.status()["lastRestart"], lambda last: "firstStepTime" in last, "a step")
    assert done["inPlace"] == (way in STAYS), done
    time.sleep(QUIET_S)
    seconds = {phase: to_seconds(done[f"{phase}Time"]) - killed_at for phase in PHASES}
    return Measurement(way=way, seconds=seconds, requests=changes(operator) - before)


def table(measured: list[Measurement]) -> str:
    """Medians by way."""
    lines = ["| way | n | " + " | ".join(PHASES) + " | requests | of which |", "|" + "---|" * (len(PHASES) + 4)]
    for way in dict.fromkeys(each.way for each in measured):
        found = [each for each in measured if each.way == way]
        medians = [f"{statistics.median(each.seconds[phase] for each in found):.2f}" for phase in PHASES]
        total = statistics.median(sum(each.requests.values()) for each in found)
        kinds = sorted({name for each in found for name in each.requests})
        parts = ", ".join(f"{statistics.mean(each.requests[name] for each in found):.1f} {name}" for name in kinds)
        lines.append(f"| {way} | {len(found)} | {' | '.join(medians)} | {total:g} | {parts} |")
    return "\n".join(lines)


def main() -> None:
    """Measures the ways in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was measured is told, and nothing runs on
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plane = stack.enter_context(contextlib.contextmanager(serving)(folder / "plane"))
        jobs = JobClient(plane=plane, namespace=new_namespace(plane, "recovery"))
        stack.enter_context(fake_kubelet.playing(FakeKubelet(kubeconfig=plane.kubeconfig, namespace=jobs.namespace)))
        settings = push_settings(plane, jobs, folder)
        operator = stack.enter_context(operator_process.running(plane.kubeconfig, folder, **settings))
        jobs.submit(manifest(numNodes=options.nodes, failurePolicy=POLICY))
        jobs.await_phase("Running")
        gangs = Gangs(jobs, folder, options.nodes)
        stack.callback(gangs.stack.close)
        measured: list[Measurement] = []
        try:
            for way in tuple(options.ways) * options.kills:
                measured.append(restart(gangs, operator, way))
                print(measured[-1], flush=True)
        finally:
            print(table(measured))


if __name__ == "__main__":
    main()
