"""What a test does as a pod that reports progress: certificates for the endpoint, the pod's token, the push itself."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from local_cluster import control_plane
from local_cluster.control_plane import ControlPlane, free_port
from tests.support.operator.job_client import JobClient

TRAINING = {
    "phase": "training",
    "iteration": 30,
    "total_iterations": 120,
    "metrics": {"loss": 2.5},
    "remaining_s": 90.0,
}


def push_settings(plane: ControlPlane, jobs: JobClient, folder: Path, **more: str) -> dict[str, str]:
    """Settings of an operator that takes pushes in on loopback, of IPv4 unless more says otherwise."""
    certificates = folder / "certificates"
    if not certificates.exists():
        certificates.mkdir()
        control_plane.certificate(plane.folder, "progress", "/CN=progress", names="subjectAltName=IP:127.0.0.1,IP:::1")
        for source, target in (("progress.crt", "tls.crt"), ("progress.key", "tls.key"), ("ca.crt", "ca.crt")):
            (certificates / target).write_bytes((plane.folder / source).read_bytes())
    port = str(free_port())
    return {
        "MTJ_WATCH_NAMESPACES": jobs.namespace,
        "MTJ_PROGRESS_PORT": port,
        "MTJ_PROGRESS_SERVICE_PORT": port,
        "MTJ_PROGRESS_HOST": "127.0.0.1",
        "MTJ_PROGRESS_CERTIFICATES": str(certificates),
        "MTJ_PER_JOB_METRICS": "true",
        **more,
    }


def pod_token(jobs: JobClient, pod: str, *, audience: str | None = None) -> str:
    """The token that the kubelet would have put into this pod's projected volume."""
    raw = jobs.plane.get(jobs.path("pods", pod))
    (source,) = next(v["projected"]["sources"] for v in raw["spec"]["volumes"] if v["name"] == "mtj-progress-token")
    bound = {"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": raw["metadata"]["uid"]}
    spec = {"audiences": [audience or source["serviceAccountToken"]["audience"]], "boundObjectRef": bound}
    answer = jobs.plane.create(jobs.path("serviceaccounts", "default/token"), {"spec": spec})
    return answer["status"]["token"]


def variables(jobs: JobClient, pod: str) -> dict[str, str]:
    """The environment of the pod's trainer."""
    raw = jobs.plane.get(jobs.path("pods", pod))
    return {each["name"]: each.get("value", "") for each in raw["spec"]["containers"][0]["env"]}


def push(jobs: JobClient, url: str, token: str, body: object) -> int:
    """The status of the answer to a push."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers, method="POST")
    context = ssl.create_default_context(cafile=str(jobs.plane.folder / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
