"""What kopf's own parts cost beside those of the operator: python benchmarks/kopf_parts.py [--pods 1000].

Watching pods: kopf's `on.event` with its default settings and with the operator's, beside the operator's informer; each
in a process of its own, each turning every pod into the same small record. Handling jobs: kopf's `on.create`,
`on.update` and a timer with its default storage; the handlers do nothing, and what kopf writes for them is counted.
Everything runs on a real kube-apiserver; nothing runs the pods.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("operator", "trainer", ".")]

import kopf
from operator_bench import cpu_s, each, memory_mib

from local_cluster.control_plane import ControlPlane
from megatron_operator.api import names
from megatron_operator.cluster.kubernetes.client import Client
from megatron_operator.cluster.kubernetes.connection import from_kubeconfig
from megatron_operator.cluster.kubernetes.informer import Informer, Listeners, Scope
from megatron_operator.cluster.kubernetes.resource import JOB, POD
from megatron_operator.core.observe import read_pod
from megatron_operator.process.handlers import kopf_connection, kopf_settings
from megatron_operator.process.settings import Settings
from tests.support.operator.job_client import JobClient, manifest, new_namespace, serving, wait_until

Counter = Synchronized
SPAWN = multiprocessing.get_context("spawn")
PATIENCE_S = 300
NUM_JOBS = 100
TIMER_S = 5.0
STARTING_S = 4.0
WATCHED_S = 20.0


def log_in(registry: kopf.OperatorRegistry, kubeconfig: Path) -> None:
    """Has kopf use the credentials that the operator uses."""

    @kopf.on.login(registry=registry)
    async def connect(**_: object) -> kopf.ConnectionInfo:
        return kopf_connection(from_kubeconfig(kubeconfig))


def watch_by_kopf(settings: kopf.OperatorSettings | None, kubeconfig: Path, namespace: str, seen: Counter) -> None:
    """Watches pods by kopf; settings None: kopf's defaults. Body of a process."""
    registry, records = kopf.OperatorRegistry(), {}
    log_in(registry, kubeconfig)

    @kopf.on.event("", "v1", "pods", labels={names.LABEL_JOB_NAME: kopf.PRESENT}, registry=registry)
    async def on_event(event: dict, **_: object) -> None:
        records[event["object"]["metadata"]["name"]] = read_pod(event["object"])
        seen.value += 1

    asyncio.run(kopf.operator(registry=registry, settings=settings, standalone=True, namespaces=[namespace]))


def watch_by_quiet_kopf(kubeconfig: Path, namespace: str, seen: Counter) -> None:
    """The same with the operator's own settings of kopf: nothing stored, nothing posted."""
    watch_by_kopf(kopf_settings(Settings()), kubeconfig, namespace, seen)


def watch_by_default_kopf(kubeconfig: Path, namespace: str, seen: Counter) -> None:
    """The same with kopf's defaults."""
    watch_by_kopf(None, kubeconfig, namespace, seen)


def watch_by_informer(kubeconfig: Path, namespace: str, seen: Counter) -> None:
    """Watches pods by the operator's informer. Body of a process."""

    def changed(key: tuple[str, str]) -> None:
        seen.value += 1

    async def run() -> None:
        async with Client(from_kubeconfig(kubeconfig)) as client:
            scope = Scope(resource=POD, namespaces=(namespace,))
            await Informer(client, scope, read_pod, Listeners(changed=changed)).run()

    asyncio.run(run())


def handle_by_kopf(kubeconfig: Path, namespace: str, seen: Counter) -> None:
    """Handles jobs with kopf's handlers as its documentation shows them. Body of a process."""
    registry = kopf.OperatorRegistry()
    log_in(registry, kubeconfig)
    kind = (names.GROUP, names.VERSION, names.PLURAL)

    @kopf.on.create(*kind, registry=registry)
    @kopf.on.update(*kind, registry=registry)
    @kopf.timer(*kind, interval=TIMER_S, registry=registry)
    async def handle(**_: object) -> None:
        seen.value += 1

    asyncio.run(kopf.operator(registry=registry, standalone=True, namespaces=[namespace]))


def make_pods(plane: ControlPlane, namespace: str, num_pods: int) -> None:
    """Creates this many pods of one job; no kubelet runs them."""
    job = plane.create(JOB.path(namespace), manifest(suspend=True))
    owner = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": "job", "controller": True}
    labels = {names.LABEL_JOB_NAME: "job"}

    def body(index: int) -> dict:
        metadata = {
            "name": names.pod_name("job", 0, index + 1),
            "labels": labels,
            "ownerReferences": [{**owner, "uid": job["metadata"]["uid"]}],
        }
        return {"metadata": metadata, "spec": {"containers": [{"name": "trainer", "image": "trainer:test"}]}}

    on_each(plane, num_pods, lambda client, index: client.create(POD, namespace, body(index)))


def on_each(plane: ControlPlane, number: int, work: Callable) -> None:
    """Calls work(client, index) for each index below number, sixteen at a time."""

    async def run() -> None:
        async with Client(from_kubeconfig(plane.kubeconfig)) as client:
            await each(list(range(number)), lambda index: work(client, index), parallel=16)

    asyncio.run(run())


def watching(plane: ControlPlane, namespace: str, num_pods: int, body: Callable) -> tuple[float, float, float]:
    """(CPU ms per pod listed, CPU ms per change, resident MiB) of a process that watches the pods."""
    with counting(plane, "default", body) as (idle, _):
        time.sleep(STARTING_S)
        start_s = cpu_s(idle.pid)
    with counting(plane, namespace, body) as (process, seen):
        wait_until(lambda: seen.value, lambda value: value >= num_pods, "all pods", PATIENCE_S)
        time.sleep(STARTING_S)
        listed_s = cpu_s(process.pid)
        annotated = {"metadata": {"annotations": {"example.com/at": str(time.monotonic())}}}
        on_each(
            plane,
            num_pods,
            lambda client, index: client.patch(POD, namespace, names.pod_name("job", 0, index + 1), annotated),
        )
        wait_until(lambda: seen.value, lambda value: value >= 2 * num_pods, "all changes", PATIENCE_S)
        changed_s = cpu_s(process.pid)
        memory = memory_mib(process.pid)
    return 1000 * (listed_s - start_s) / num_pods, 1000 * (changed_s - listed_s) / num_pods, memory


@contextlib.contextmanager
def counting(plane: ControlPlane, namespace: str, body: Callable) -> Iterator[tuple]:
    """(process that runs `body`, counter of what it has seen)."""
    seen = SPAWN.Value("i", 0)
    process = SPAWN.Process(target=body, args=(plane.kubeconfig, namespace, seen), daemon=True)
    process.start()
    yield process, seen
    process.terminate()
    process.join()


def handling(plane: ControlPlane, namespace: str) -> tuple[float, float, float]:
    """(writes per job after its creation, writes per job and minute while idle, events per job) of kopf's handlers."""
    with counting(plane, namespace, handle_by_kopf) as (_, seen):
        before = plane.get(JOB.path(namespace))["metadata"]["resourceVersion"]
        jobs = JobClient(plane=plane, namespace=namespace)
        for index in range(NUM_JOBS):
            jobs.submit(manifest(f"job-{index}"))
        wait_until(lambda: seen.value, lambda value: value >= 2 * NUM_JOBS, "every handler", PATIENCE_S)
        time.sleep(TIMER_S)
        first = asyncio.run(changes(plane, namespace, since=before, seconds=5))
        idle = asyncio.run(changes(plane, namespace, since="", seconds=WATCHED_S))
        events = len(plane.get(f"/api/v1/namespaces/{namespace}/events")["items"]) / NUM_JOBS
    return (first - NUM_JOBS) / NUM_JOBS, idle / NUM_JOBS * 60 / WATCHED_S, events


async def changes(plane: ControlPlane, namespace: str, *, since: str, seconds: float) -> int:
    """Number of changes of jobs that a watch shows in so many seconds, from resource version `since` or from now on."""
    found = 0
    async with Client(from_kubeconfig(plane.kubeconfig)) as client:
        page = await client.list_page(JOB, namespace, {"limit": "1"}, metadata_only=True)
        parameters = {"resourceVersion": since or page["metadata"]["resourceVersion"]}
        try:
            async with asyncio.timeout(seconds):
                async for _ in client.watch(JOB, namespace, parameters):
                    found += 1
        except TimeoutError:
            return found
    return found


def main() -> None:
    """One run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mtj-kopf-") as folder:
        for plane in serving(Path(folder)):
            namespace = new_namespace(plane, "pods")
            make_pods(plane, namespace, options.pods)
            print(f"{'':<26}{'list ms/pod':>12}{'change ms/pod':>15}{'MiB':>8}")
            for name, body in (
                ("kopf.on.event", watch_by_default_kopf),
                ("kopf.on.event, as tuned", watch_by_quiet_kopf),
                ("informer", watch_by_informer),
            ):
                first, change, memory = watching(plane, namespace, options.pods, body)
                print(f"{name:<26}{first:>12.2f}{change:>15.2f}{memory:>8.0f}", flush=True)
            created, idle, events = handling(plane, new_namespace(plane, "handlers"))
            print(f"kopf's handlers: {created:.1f} writes a new job, {idle:.1f} a minute idle, {events:.1f} events")


if __name__ == "__main__":
    main()
