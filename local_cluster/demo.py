"""A one-node cluster with the operator installed, for people: python -m local_cluster.demo [--data FOLDER].

Without --data it stays until Ctrl-C. With it, the quickstart of that folder trains in two pods, from `helm install`
to Succeeded, while kubectl shows the job and its events.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("operator", "trainer", ".")]

from local_cluster import (
    helm_chart,
    images,
    one_node,
    one_node_jobs,
)
from local_cluster.control_plane import ControlPlane
from local_cluster.node_machine import Unavailable
from local_cluster.one_node_jobs import Claims
from local_cluster.wait import wait_until
from megatron_operator.api import names
from megatron_trainjob.args import yaml_file

NAMESPACE = "default"
JOBS = f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/{names.PLURAL}"
CLAIM = "quickstart-data"
PATIENCE_S = 1800.0
ENDS = ("Succeeded", "Failed")


def install(plane: ControlPlane) -> None:
    """Gives the node its images and installs the chart; returns once both replicas are ready."""
    say("building and loading the images")
    images.load_all(plane)
    say("helm install")
    values = helm_chart.values_flags(images.VALUES)
    helm_chart.on_cluster(
        plane, "install", helm_chart.RELEASE, str(helm_chart.CHART), "--create-namespace", "--wait", *values
    )
    kubectl(plane, "get", "pods", "--namespace", helm_chart.NAMESPACE, "--output", "wide")


def train(plane: ControlPlane, data: Path, folder: Path) -> None:
    """The quickstart in two pods, with a copy of its model and data on its claim."""
    claims = Claims(plane=plane, namespace=NAMESPACE, folder=folder)
    claims.offer(CLAIM)
    shutil.copytree(data / "model", claims.claim(CLAIM) / "model")
    for name in ("train.jsonl", "validation.jsonl"):
        shutil.copy(data / name, claims.claim(CLAIM) / name)
    one_node_jobs.provide_environment(claims)
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": one_node_jobs.SIZE}}
    plane.create(claims_path(), {"metadata": {"name": CLAIM}, "spec": spec})
    say("kubectl apply: examples/quickstart/trainjob.yaml, in two pods of one process each")
    plane.create(JOBS, in_two_pods())
    watches = [
        watch(plane, "get", "mtj", "--watch"),
        watch(plane, "get", "events", "--watch", "--field-selector", "involvedObject.kind=MegatronTrainJob"),
    ]
    ended = wait_until(lambda: phase(plane), ENDS.__contains__, "its end", PATIENCE_S)
    for each in watches:
        each.terminate()
    say(f"{ended}; the log of its first pod ends with:")
    kubectl(plane, "logs", "quickstart-a0-master-0", "--tail=8")
    shown = ROOT / "examples" / "quickstart" / "show_result.py"
    subprocess.run([sys.executable, shown, "--data", claims.claim(CLAIM)], check=True)


def in_two_pods() -> dict[str, Any]:
    """The quickstart's manifest as it is, but for two pods that fit on this machine beside each other."""
    job = yaml_file.load(ROOT / "examples" / "quickstart" / "trainjob.yaml")
    resources = {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "8Gi"}}
    job["spec"] |= {"numNodes": 2, "nprocPerNode": 1, "resourcesPerNode": resources}
    return one_node_jobs.on_the_node(job)


def phase(plane: ControlPlane) -> str | None:
    """Where the job stands, None before its first status."""
    status = (plane.get(f"{JOBS}/quickstart") or {}).get("status") or {}
    return status.get("phase")


def claims_path() -> str:
    """URL path of the claims."""
    return f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"


def kubectl(plane: ControlPlane, *arguments: str) -> None:
    """Shows a command and what it prints."""
    print(f"$ kubectl {' '.join(arguments)}", flush=True)
    subprocess.run(["kubectl", "--kubeconfig", plane.kubeconfig, *arguments], check=True)


def watch(plane: ControlPlane, *arguments: str) -> subprocess.Popen[bytes]:
    """Shows a command that goes on printing."""
    print(f"$ kubectl {' '.join(arguments)} &", flush=True)
    return subprocess.Popen(["kubectl", "--kubeconfig", plane.kubeconfig, *arguments])


def say(text: str) -> None:
    """One line about what happens next."""
    print(f"==> {text}", flush=True)


def main() -> None:
    """Starts the cluster and stays, or trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the quickstart: model, train.jsonl, validation.jsonl")
    options = parser.parse_args()
    if not shutil.which("kubectl"):
        raise Unavailable("the demo shows itself through kubectl: install it")
    images.make_ready()
    with tempfile.TemporaryDirectory(prefix="mtj-") as folder, one_node.running(Path(folder)) as plane:
        kubectl(plane, "get", "nodes", "--output", "wide")
        install(plane)
        if options.data:
            train(plane, options.data, Path(folder) / "volumes")
        else:
            say(f"export KUBECONFIG={plane.kubeconfig}   (Ctrl-C ends the cluster)")
            threading.Event().wait()


if __name__ == "__main__":
    try:
        main()
    except Unavailable as reason:
        raise SystemExit(str(reason)) from None
    except KeyboardInterrupt:
        say("ended")
