"""Renders and installs the project's chart, and turns the installed Deployment into an operator process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from local_cluster import control_plane
from local_cluster.control_plane import ControlPlane
from local_cluster.control_plane_binaries import KUBERNETES_VERSION, helm

Object = Mapping[str, Any]
CHART = Path(__file__).parents[1] / "charts" / "megatron-train-operator"
RELEASE = "mtj"
NAMESPACE = "mtj-system"
FULL_NAME = "mtj-megatron-train-operator"


def run_helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What helm answered; the caller looks at its exit code."""
    return subprocess.run([str(helm()), *arguments], capture_output=True, text=True, check=False)


def values_flags(values: Mapping[str, object]) -> list[str]:
    """Flags that set these values, nested ones by dotted names."""
    return [flag for name, value in values.items() for flag in ("--set-json", f"{name}={json.dumps(value)}")]


def render(**values: object) -> list[Object]:
    """The chart's objects with these values (`webhook__enabled=True` sets webhook.enabled)."""
    dotted = {name.replace("__", "."): value for name, value in values.items()}
    version = ("--kube-version", KUBERNETES_VERSION, "--namespace", NAMESPACE)
    done = run_helm("template", RELEASE, str(CHART), *version, *values_flags(dotted))
    if done.returncode:
        raise ValueError(done.stderr)
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def of_kind(objects: list[Object], kind: str) -> Iterator[Object]:
    """Those of this kind."""
    return (each for each in objects if each["kind"] == kind)


def on_cluster(plane: ControlPlane, *arguments: str) -> str:
    """Helm's answer about this cluster; raises when it failed."""
    done = run_helm("--kubeconfig", str(plane.kubeconfig), "--namespace", NAMESPACE, *arguments)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def account_kubeconfig(plane: ControlPlane, account: str = FULL_NAME, namespace: str = NAMESPACE) -> Path:
    """A kubeconfig with a token of this service account, the release's or another."""
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    token = plane.create(path, {"spec": {"expirationSeconds": 3600}})["status"]["token"]
    return control_plane.write_kubeconfig(plane, name=f"kubeconfig-{account}", token=token)


def environment(plane: ControlPlane, deployment: str = FULL_NAME, namespace: str = NAMESPACE) -> dict[str, str]:
    """The variables that the installed Deployment, the release's or another, gives the operator's container."""
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}"
    container = plane.get(path)["spec"]["template"]["spec"]["containers"][0]
    fields = {"metadata.name": "operator-0", "metadata.namespace": namespace, "status.podIP": "127.0.0.1"}
    return {
        each["name"]: fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        if "valueFrom" in each
        else each.get("value", "")
        for each in container["env"]
    }
