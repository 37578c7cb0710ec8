"""Seconds from a failure to the next step on a true node: this operator, JobSet, PyTorchJob and TrainJob, in turn.

    python benchmarks/recovery_on_node.py --folder DIR [--rounds 10] [--minutes 12] [--quiet FILE]
        [--contenders ours recreate inplace pytorchjob trainjob] [--ways rank container oom deleted]
        [--hung 0] [--lost 0] [--pod-shares 8192] [--metrics FILE]

One node (docs/one-node-cluster.md), each contender's job in a namespace of its own: two pods of one rank, the same
image, model and arguments, a checkpoint every five steps. The ranks of those that are not measured are stopped, so that
they take no processor. A way kills the worker's rank (rank), the first process of its container (container), has the
kernel kill for want of memory in its cgroup (oom), or deletes its pod without grace (deleted); peers have their rank
killed. Measured is the first row of logging.jsonl that a later attempt writes; writes are those of the API server in
the namespace, by whom.

Afterwards, in a job of their own each: --hung stops so many ranks for good, with a hangTimeoutSeconds of ten; --lost
ends a node of three as a failure of its power does, has the job go on with the others, and brings it back for the next.
--metrics keeps what the operator's /metrics says in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / part) for part in ("operator", "trainer", ".")]

import jobset_operator
import pytorchjob_operator
import recovery_contenders
import trainjob_operator
from recovery_contenders import Contender, command_of

from local_cluster import control_plane, helm_chart, images, one_node, one_node_jobs
from local_cluster.control_plane import ControlPlane, Refused
from local_cluster.kube_node import PAUSE_IMAGE, KubeNode, descendants
from local_cluster.wait import wait_until
from megatron_operator.timestamp import to_seconds
from tests.support.operator.job_client import JobClient

PATIENCE_S = 240.0
SETTLED_S = 0.25  # a step that was under way is over, and no way is as quick
LOOK_S = 0.01
FIRST_STEPS = 12  # of a job, and after each fault, before the next one
HANG_TIMEOUT_S = 10
LEFT_BYTES = 64 * 2**20
PHASES = ("detected", "decided", "ranksStarted", "processGroup", "loaded", "firstStep")
NO_BACKOFF = {"crashLoopBackOff": {"maxContainerRestartPeriod": "1s"}}
"""Of the kubelet, so that a peer whose containers start again and again does not wait for it."""
POD_SHARES = Path("/sys/fs/cgroup/cpu/k8s.io/cpu.shares")
METRICS = f"/api/v1/namespaces/{helm_chart.NAMESPACE}/services/{helm_chart.FULL_NAME}:metrics/proxy/metrics"
WRITES = ("create", "update", "patch", "delete", "deletecollection")

Object = Mapping[str, Any]


def rank_in(first: int) -> int:
    """The rank's process below the first process of its container: forked, or an interpreter of its own."""
    words = {pid: command_of(pid) for pid in descendants(first)}
    forked = [
        pid for pid, word in words.items() if b"fork_server" in word and b"fork_server" in command_of(parent_of(pid))
    ]
    spawned = [pid for pid, word in words.items() if b"process.rank" in word]
    return (forked or spawned)[-1]


def parent_of(pid: int) -> int:
    """The process that has started this one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def fault(contender: Contender, way: str) -> Callable[[], object]:
    """What does to the worker what the way says, at once when it is called."""
    if way == "lost":
        return node_to_lose(contender).lose
    name = sorted(contender.pods)[-1]
    first = one_node.container_pid(contender.plane, contender.name, name)
    if way in ("rank", "hung"):
        rank = rank_in(first)
        return lambda: os.kill(rank, signal.SIGSTOP if way == "hung" else signal.SIGKILL)
    if way == "container":
        return lambda: os.kill(first, signal.SIGKILL)
    if way == "oom":
        return lambda: exhaust(first)
    path = f"/api/v1/namespaces/{contender.name}/pods/{name}"
    return lambda: contender.plane.delete(path, {"gracePeriodSeconds": 0})


def node_to_lose(contender: Contender) -> KubeNode:
    """One that has a pod of the job and nothing of the cluster."""
    used = {pod["spec"]["nodeName"] for pod in contender.pods.values()}
    return next(node for node in reversed(one_node.more(contender.plane)) if node.name in used)


def exhaust(first: int) -> None:
    """A process beside the others in the container's memory cgroup (version 1) takes more than there is left.

    The kernel kills the largest of them: the kubelet of this cluster does not enforce limits, so one is set here.
    """
    (line,) = [each for each in Path(f"/proc/{first}/cgroup").read_text().splitlines() if ":memory:" in each]
    group = Path("/sys/fs/cgroup/memory") / line.split(":", 2)[2].lstrip("/")
    used = int((group / "memory.usage_in_bytes").read_text())
    (group / "memory.limit_in_bytes").write_text(str(used + LEFT_BYTES))
    program = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0'); b'x' * {4 * LEFT_BYTES}"
    subprocess.run([sys.executable, "-c", program], check=False)
    with contextlib.suppress(OSError):
        (group / "memory.limit_in_bytes").write_text("-1")


def last_row(log: Path) -> tuple[int, int]:
    """(inode, iteration of the last step) of a log."""
    with log.open("rb") as file:
        inode, size = os.fstat(file.fileno()).st_ino, os.fstat(file.fileno()).st_size
        file.seek(max(0, size - 4096))
        lines = file.read().split(b"\n")[1 if size > 4096 else 0 : -1]
    rows = [json.loads(line) for line in lines]
    return inode, max((row["iteration"] for row in rows if "lm loss" in row), default=0)


def first_step_after(log: Path, killed_at: float) -> tuple[float, int, int]:
    """(seconds since the kill, last iteration before it, first iteration after it)."""
    time.sleep(max(0.0, killed_at + SETTLED_S - time.time()))
    inode, reached = last_row(log)
    known, base = inode, reached
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        now, iteration = last_row(log)
        if now != known:
            known, base = now, iteration
        elif iteration != base:
            return time.time() - killed_at, reached, base + 1
        time.sleep(LOOK_S)
    raise TimeoutError(f"no step after {PATIENCE_S:.0f} s")


def watch_writes(namespaces: list[str]) -> None:
    """Has the API server of the next cluster note every request in these namespaces."""
    rule = {"level": "Metadata", "namespaces": namespaces, "omitStages": ["RequestReceived"]}
    control_plane.AUDIT_POLICY = {**control_plane.AUDIT_POLICY, "rules": [rule, {"level": "None"}]}


def writes(plane: ControlPlane, namespace: str) -> Counter[str]:
    """Writes in a namespace so far, by whom: "kubelet" or "control"."""
    found: Counter[str] = Counter()
    for each in plane.audit():
        if each.get("objectRef", {}).get("namespace") == namespace and each["verb"] in WRITES:
            found["kubelet" if each.get("userAgent", "").startswith("kubelet") else "control"] += 1
    return found


def measure(contender: Contender, way: str) -> dict[str, Any]:
    """One fault, until the next step."""
    log = contender.log
    assert log is not None
    begun = last_row(log)[1]
    wait_until(
        lambda: last_row(log)[1], lambda now: now >= begun + FIRST_STEPS, "steps after the last fault", PATIENCE_S
    )
    before = writes(contender.plane, contender.name)
    attempt = contender.status().get("restarts", {}).get("attempt", 0)
    hurt = fault(contender, way)
    killed_at = time.time()
    hurt()
    seconds, reached, resumed = first_step_after(log, killed_at)
    time.sleep(2.5)
    found = {
        "contender": contender.name,
        "way": way,
        "seconds": round(seconds, 3),
        "lost": max(0, reached - resumed + 1),
    }
    found["writes"] = dict(writes(contender.plane, contender.name) - before)
    if contender.status():
        wait_until(lambda: phases_of(contender, attempt), bool, "the phases", PATIENCE_S)
        last = contender.status()["lastRestart"]
        found["in_place"] = last["inPlace"]
        found["phases"] = phases = {
            phase: round(to_seconds(last[f"{phase}Time"]) - killed_at, 3) for phase in PHASES if f"{phase}Time" in last
        }
        if way == "deleted":  # its kubelet ends it a moment later: until then the log goes on
            found["seconds"], found["lost"] = phases["firstStep"], None
    return found


def phases_of(contender: Contender, attempt: int) -> bool:
    """Whether the status tells of the restart after this attempt to its end."""
    status = contender.status()
    return status.get("restarts", {}).get("attempt", 0) > attempt and "firstStepTime" in status.get("lastRestart", {})


def prepare(plane: ControlPlane, stack: contextlib.ExitStack, folder: Path, wanted: list[str]) -> None:
    """Gives the node images and operators."""
    images.load_all(plane)
    values = helm_chart.values_flags({**images.VALUES, "replicas": 1})
    helm_chart.on_cluster(
        plane, "install", helm_chart.RELEASE, str(helm_chart.CHART), "--create-namespace", "--wait", *values
    )
    if "pytorchjob" in wanted:
        initializer = [{"name": "init", "image": images.TRAINER_IMAGE, "imagePullPolicy": "Never", "command": ["true"]}]
        (folder / "initializer.yaml").write_text(json.dumps(initializer))
        more = f"--pytorch-init-container-template-file={folder}/initializer.yaml"
        stack.enter_context(pytorchjob_operator.running(plane, folder, more))
    if {"recreate", "inplace", "trainjob"} & set(wanted):
        stack.enter_context(jobset_operator.running(plane, folder))
    if "trainjob" in wanted:
        stack.enter_context(trainjob_operator.running(plane, folder))


def has_begun(contender: Contender) -> bool:
    """Whether its job trains once it is started; stops its ranks until it is measured. The others go on without it."""
    try:
        contender.start()
        wait_until(lambda: trains(contender), bool, contender.name, PATIENCE_S)
    except (AssertionError, Refused) as err:
        print(f"{contender.name} does not train: {str(err)[:500]}", flush=True)
        return False
    contender.signal(signal.SIGSTOP)
    print(f"{contender.name} trains", flush=True)
    return True


def rounds(all_of_them: list[Contender], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every contender in turn, one fault at a time, until the time is over."""
    until = time.monotonic() + 60 * options.minutes
    for _ in range(options.rounds):
        for contender in all_of_them:
            contender.signal(signal.SIGCONT)
            for way in contender.ways:
                if time.monotonic() < until:
                    yield tried(contender, way)
            contender.signal(signal.SIGSTOP)


def tried(contender: Contender, way: str) -> dict[str, Any]:
    """What was measured, or why nothing was."""
    try:
        return measure(contender, way)
    except (TimeoutError, AssertionError) as err:
        return {"contender": contender.name, "way": way, "problem": str(err)[:300]}


def alone(made: Contender) -> Contender:
    """A job of this operator that trains."""
    made.plane.create("/api/v1/namespaces", {"metadata": {"name": made.name}})
    made.start()
    wait_until(lambda: trains(made), bool, made.name, PATIENCE_S)
    return made


def stopped_ranks(plane: ControlPlane, folder: Path, times: int) -> Iterator[dict[str, Any]]:
    """This operator's job again, with a rank stopped so many times."""
    if times:
        hung = alone(recovery_contenders.ours(plane, folder, "hung", hangTimeoutSeconds=HANG_TIMEOUT_S))
        for _ in range(times):
            yield tried(hung, "hung")
        JobClient(plane=plane, namespace=hung.name).delete("job")


def lost_nodes(plane: ControlPlane, folder: Path, times: int) -> Iterator[dict[str, Any]]:
    """This operator's job again, with pods on different nodes, one of which is lost so many times."""
    if not times:
        return
    for node in one_node.more(plane):
        start_node(node)
        for image in (PAUSE_IMAGE, images.TRAINER_IMAGE):
            images.load(node, image)
    lost = alone(recovery_contenders.ours(plane, folder, "lost", one_node_jobs.apart("job")))
    for _ in range(times):
        yield tried(lost, "lost")
        for node in one_node.more(plane):
            if not node.is_on():
                start_node(node)


def start_node(node: KubeNode) -> None:
    """Starts a node, for the first time or again."""
    node.start(dns=one_node.GATEWAY, kubelet=NO_BACKOFF)
    wait_until(lambda: taints(node), lambda found: not found, f"no taints of {node.name}", PATIENCE_S)


def taints(node: KubeNode) -> list[str]:
    """What keeps pods away from a node that has just come back."""
    raw = node.plane.get(f"/api/v1/nodes/{node.name}")
    return [each["key"] for each in raw["spec"].get("taints", ())]


def trains(contender: Contender) -> bool:
    """Whether its first checkpoints are there."""
    return contender.log is not None and last_row(contender.log)[1] > FIRST_STEPS


def table(measured: list[dict[str, Any]]) -> str:
    """Medians and ranges, by contender and way."""
    heads = ("contender", "way", "n", *PHASES, "kill to first step, median", "range", "steps lost", "writes")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    whole = [each for each in measured if "seconds" in each]
    for contender, way, is_in_place in dict.fromkeys((e["contender"], e["way"], e.get("in_place")) for e in whole):
        found = [e for e in whole if (e["contender"], e["way"], e.get("in_place")) == (contender, way, is_in_place)]
        seconds = [each["seconds"] for each in found]
        rows = [[e["phases"][phase] for e in found if phase in e.get("phases", {})] for phase in PHASES]
        medians = [f"{statistics.median(row):.2f}" if row else "" for row in rows]
        shown = way if is_in_place is None else f"{way}, {'in place' if is_in_place else 'new gang'}"
        steps = [each["lost"] for each in found if each["lost"] is not None]
        lost = f"{statistics.mean(steps):.1f}" if steps else ""
        asked = [
            f"{statistics.mean(e['writes'].get(who, 0) for e in found):.0f} {who}" for who in ("control", "kubelet")
        ]
        spread = f"{min(seconds):.2f}-{max(seconds):.2f}"
        cells = (
            contender,
            shown,
            str(len(found)),
            *medians,
            f"{statistics.median(seconds):.2f}",
            spread,
            lost,
            ", ".join(asked),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures every contender in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--hung", type=int, default=0)
    parser.add_argument("--lost", type=int, default=0)
    parser.add_argument("--contenders", nargs="+", default=["ours", "recreate", "inplace", "pytorchjob", "trainjob"])
    parser.add_argument("--ways", nargs="+", default=["rank", "container", "deleted"])
    parser.add_argument("--quiet", type=Path, help="a file that is there while it measures")
    parser.add_argument("--metrics", type=Path, help="a file for the operator's metrics")
    parser.add_argument("--pod-shares", type=int, help="cpu.shares of all pods together; others have 1024 a process")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    watch_writes([*options.contenders, "hung", "lost"])
    images.make_ready()
    measured: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        folder.chmod(0o755)
        plane = stack.enter_context(one_node.running(folder, kubelet=NO_BACKOFF))
        prepare(plane, stack, folder, options.contenders)
        everyone = [each for each in recovery_contenders.chosen(plane, folder, options) if has_begun(each)]
        try:
            if options.quiet:
                options.quiet.touch()
            if options.pod_shares:
                POD_SHARES.write_text(str(options.pod_shares))
            for found in itertools.chain(
                rounds(everyone, options),
                stopped_ranks(plane, folder, options.hung),
                lost_nodes(plane, folder, options.lost),
            ):
                measured.append(found)
                print(json.dumps(found), flush=True)
        finally:
            if options.quiet:
                options.quiet.unlink(missing_ok=True)
            print(table(measured), flush=True)
            if options.metrics:
                options.metrics.write_text(plane.get(METRICS))
            for each in everyone:
                each.signal(signal.SIGCONT)


if __name__ == "__main__":
    main()
