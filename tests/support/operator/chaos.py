"""Hurts the operator at random, from a seed, until enough faults were injected; then every job must come out right.

`python -m tests.support.operator.chaos --seed 7 --faults 500` replays a run. Faults: what fault_proxy.py does to
requests and watches, kill -9 of the operator (also while ranks restart in their pods), pods deleted by hand, ranks and
containers that fail or are killed, launchers that freeze, answers to launchers that are lost, a new start of the API
server.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / part) for part in ("operator", "trainer", ".")]

from local_cluster.control_plane import (
    ControlPlane,
    Refused,
    write_kubeconfig,
)
from tests.support.operator import (
    fake_kubelet,
    fault_proxy,
    operator_process,
)
from tests.support.operator.fake_kubelet import (
    FakeKubelet,
    Life,
)
from tests.support.operator.fake_launchers import FakeLaunchers, Fate, Run
from tests.support.operator.fault_proxy import FaultProxy
from tests.support.operator.job_client import (
    JobClient,
    manifest,
    new_namespace,
    serving,
    wait_until,
)
from tests.support.operator.operator_process import OperatorProcess
from tests.support.operator.progress_client import push_settings

Object = Mapping[str, Any]
FAULT_RATE = 0.25
FAILING_CODES = (1, 134, 137, 139)
POLICY = {"maxRestarts": 100, "backoffSeconds": {"initial": 0, "max": 1}}
MAX_JOBS = 60
CALM_S = 300.0
RESTART_S = 3.0
LOST_ANSWERS = 0.05


@dataclass(kw_only=True)
class Chaos:
    """One run: what is hurt, and what was done to it."""

    plane: ControlPlane
    jobs: JobClient
    proxy: FaultProxy
    folder: Path
    draw: random.Random
    launchers: FakeLaunchers
    push: Mapping[str, str]
    done: Counter[str] = field(default_factory=Counter)
    expected: dict[str, str] = field(default_factory=dict)
    operator: OperatorProcess | None = None

    @property
    def num_faults(self) -> int:
        """Faults so far."""
        return sum(self.done.values()) + sum(self.proxy.injected.values())


def operator_token(plane: ControlPlane) -> Path:
    """A kubeconfig with a token that may do everything: certificates cannot pass a plain HTTP proxy."""
    accounts = "/api/v1/namespaces/default/serviceaccounts"
    with contextlib.suppress(Refused):
        plane.create(accounts, {"metadata": {"name": "all"}})
        binding = {
            "metadata": {"name": "all"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "all", "namespace": "default"}],
        }
        plane.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
    answer = plane.create(f"{accounts}/all/token", {"spec": {"expirationSeconds": 7200}})
    return write_kubeconfig(plane, name="kubeconfig-all", token=answer["status"]["token"])


def life_of(seed: int, pod: Object, launchers: FakeLaunchers) -> Life:
    """How this pod lives: some containers of the first attempts die, launcher and all; the others do as ranks do."""
    name = pod["metadata"]["name"]
    draw = random.Random(f"{seed}/{name}")
    attempt = int(pod["metadata"]["labels"]["megatrontrain.dev/restart-attempt"])
    if name.startswith("good-") and attempt < 2 and draw.random() < 0.15:
        return Life(after_s=draw.uniform(0.1, 2.0), exit_code=draw.choice(FAILING_CODES))
    return Life(container=launchers.run, stop_s=draw.uniform(0, 0.5))


def fate_of(seed: int, run: Run) -> Fate:
    """How the ranks of an attempt end: the same in every run with this seed. From the third on none fails by itself."""
    name, attempt = run
    draw = random.Random(f"{seed}/{name}/{attempt}")
    if name.startswith("bad-"):
        return Fate(after_s=draw.uniform(0.2, 1.0), exit_code=65)
    if attempt < 2 and draw.random() < 0.5:
        return Fate(after_s=draw.uniform(0.1, 2.0), exit_code=draw.choice(FAILING_CODES))
    return Fate(after_s=draw.uniform(2.0, 4.0))


def start_operator(chaos: Chaos) -> None:
    """Starts an operator behind the proxy; it may take long to be ready there."""
    variables = {
        **chaos.push,
        "MTJ_API_SERVER": chaos.proxy.url,
        "MTJ_WATCH_SILENCE_S": "4",
        "MTJ_REQUEST_TIMEOUT_S": "5",
        "MTJ_COMPARE_S": "5",
    }
    chaos.operator = operator_process.start(operator_token(chaos.plane), chaos.folder, **variables)


def submit(chaos: Chaos) -> None:
    """One more job, of which it is known how it must end."""
    kind = chaos.draw.choice(("good", "good", "good", "bad"))
    name = f"{kind}-{len(chaos.expected)}"
    chaos.expected[name] = {"good": "Succeeded", "bad": "Failed"}[kind]
    chaos.jobs.submit(manifest(name, numNodes=chaos.draw.choice((1, 2, 4)), failurePolicy=POLICY))


def revive(chaos: Chaos) -> None:
    """Starts an operator that gave up (on a deaf watch, for instance), as its Deployment would."""
    if chaos.operator is None or chaos.operator.process.poll() is not None:
        start_operator(chaos)


def kill_operator(chaos: Chaos) -> None:
    """kill -9, and a new process."""
    if chaos.operator:
        chaos.operator.kill()
    start_operator(chaos)
    chaos.done["operator killed"] += 1


def kill_rank(chaos: Chaos, *, freezes: bool = False) -> Run | None:
    """kill -9 of a rank of a job that is to succeed; its attempt. freezes: another pod's launcher stops, as on a node
    that hangs. Not a rank of a launcher that has stopped: no one would hear of it, and these jobs have no hang timeout.
    """
    least_nodes = 2 if freezes else 1
    running = [(run, ranks) for run, ranks in chaos.launchers.running() if run[0].startswith("good-")]
    heard = [(run, ranks) for run, ranks in running if not ranks.started & chaos.launchers.frozen]
    choices = sorted((each for each in heard if each[1].num_nodes >= least_nodes), key=lambda each: each[0])
    if not choices:
        return None
    run, ranks = chaos.draw.choice(choices)
    node_rank = chaos.draw.randrange(ranks.num_nodes)
    if freezes:
        is_master = {name: "-master-" in name for name in ranks.started}
        chaos.launchers.frozen.add(next(name for name in is_master if is_master[name] != (node_rank == 0)))
        chaos.done["launcher frozen"] += 1
    ranks.fate = Fate(after_s=0.0, exit_code=137, node_rank=node_rank)
    chaos.done["rank killed"] += 1
    return run


def freeze_launcher(chaos: Chaos) -> None:
    """A rank dies and a launcher does not come back."""
    kill_rank(chaos, freezes=True)


def kill_operator_in_restart(chaos: Chaos) -> None:
    """kill -9 of the operator when it has written the restart of ranks down that are to start again in their pods."""
    run = kill_rank(chaos)
    if run is None:
        return
    job, attempt = run
    until = time.monotonic() + RESTART_S
    while time.monotonic() < until:
        restarts = chaos.jobs.status(job).get("restarts", {})
        if restarts.get("attempt", 0) > attempt:
            if "podAttempt" in restarts:
                chaos.done["operator killed in a restart in place"] += 1
            kill_operator(chaos)
            return
        time.sleep(0.02)


def kill_container(chaos: Chaos) -> None:
    """A signal ends the whole container of a pod of a job that is to succeed; its kubelet starts it again."""
    running = [ranks for run, ranks in chaos.launchers.running() if run[0].startswith("good-")]
    if running:
        name = chaos.draw.choice(sorted(name for ranks in running for name in ranks.started))
        chaos.launchers.killed[name] = chaos.draw.choice((134, 137, 139))
        chaos.done["container killed"] += 1


def delete_pod(chaos: Chaos) -> None:
    """Somebody deletes a pod of a job that is to succeed."""
    pods = [pod["metadata"]["name"] for pod in chaos.plane.get(chaos.jobs.path("pods"))["items"]]
    living = sorted(name for name in pods if name.startswith("good-"))
    if living:
        chaos.plane.delete(chaos.jobs.path("pods", chaos.draw.choice(living)))
        chaos.done["pod deleted"] += 1


def restart_server(chaos: Chaos) -> None:
    """The API server dies and comes back."""
    chaos.plane.stop_process("apiserver")
    chaos.plane.start_apiserver()
    chaos.done["API server restarted"] += 1


ACTIONS = (
    (submit, 6),
    (delete_pod, 3),
    (kill_rank, 4),
    (kill_container, 6),
    (freeze_launcher, 1),
    (kill_operator, 1),
    (kill_operator_in_restart, 1),
)


def hurt(chaos: Chaos, num_faults: int) -> None:
    """Acts until so many faults were injected."""
    actions, weights = zip(*ACTIONS, strict=True)
    is_restarted = False
    while chaos.num_faults < num_faults:
        (action,) = chaos.draw.choices(actions, weights)
        if action is submit and len(chaos.expected) >= MAX_JOBS:
            action = delete_pod
        with contextlib.suppress(Refused):  # the pod was gone already
            action(chaos)
        if not is_restarted and chaos.num_faults > num_faults // 2:
            restart_server(chaos)
            is_restarted = True
        revive(chaos)
        time.sleep(chaos.draw.uniform(0.05, 0.4))


def phases(jobs: JobClient) -> dict[str, str]:
    """Phase of every job."""
    items = jobs.plane.get(jobs.path("megatrontrainjobs"))["items"]
    return {job["metadata"]["name"]: (job.get("status") or {}).get("phase", "") for job in items}


def settle(chaos: Chaos) -> None:
    """No more faults; every job has to come to the end that it was made for."""
    chaos.proxy.choose = fault_proxy.no_faults

    def look() -> dict[str, str]:
        revive(chaos)
        return phases(chaos.jobs)

    wait_until(look, lambda found: found == chaos.expected, "every job's right end", CALM_S)


def run(plane: ControlPlane, folder: Path, seed: int, num_faults: int) -> Counter[str]:
    """The faults that were injected, by kind; raises AssertionError when anything came out wrong."""
    jobs = JobClient(plane=plane, namespace=new_namespace(plane, f"chaos-{seed}"))
    loses = random.Random(f"{seed}/answers")
    launchers = FakeLaunchers(
        jobs=jobs, fate=lambda run: fate_of(seed, run), is_lost=lambda: loses.random() < LOST_ANSWERS
    )
    kubelet = FakeKubelet(
        kubeconfig=plane.kubeconfig, namespace=jobs.namespace, life=lambda pod: life_of(seed, pod, launchers)
    )
    proxy = FaultProxy(server=plane.server, ca_file=plane.folder / "ca.crt", seed=seed)
    with fake_kubelet.playing(kubelet), fault_proxy.running(proxy):
        chaos = Chaos(
            plane=plane,
            jobs=jobs,
            proxy=proxy,
            folder=folder,
            draw=random.Random(seed),
            launchers=launchers,
            push=push_settings(plane, jobs, folder),
        )
        proxy.choose = fault_proxy.sometimes(FAULT_RATE)
        start_operator(chaos)
        try:
            hurt(chaos, num_faults)
            settle(chaos)
        except AssertionError as error:
            last = chaos.operator.log.read_text()[-3000:] if chaos.operator else ""
            raise AssertionError(f"{error}\nthe operator's log ends with:\n{last}") from error
        finally:
            if chaos.operator:
                chaos.operator.kill()
    found = {
        "pods of two attempts ran at once": kubelet.overlaps,
        "launchers were told what they must not be": launchers.problems,
    }
    if any(found.values()):
        raise AssertionError("; ".join(f"{what}: {places[:5]}" for what, places in found.items() if places))
    plane.delete(f"/api/v1/namespaces/{jobs.namespace}")
    again = launchers.in_place.total()
    joined = launchers.joined.total()
    print(f"{again} times ranks started again in their pods, {joined} of them in a container that did")
    print("reports by answer", dict(launchers.answers))
    return proxy.injected + chaos.done


def main() -> None:
    """One run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mtj-chaos-") as folder:
        for plane in serving(Path(folder) / "plane"):
            injected = run(plane, Path(folder), options.seed, options.faults)
            print(f"seed {options.seed}: {sum(injected.values())} faults, every job ended as it should", dict(injected))


if __name__ == "__main__":
    main()
