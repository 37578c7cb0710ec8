"""The admission webhook as the API server is told of it, and how to see that it is asked."""

from __future__ import annotations

import base64
from typing import Any

from local_cluster.control_plane import ControlPlane, Refused
from tests.support.operator.job_client import ARGS, JobClient, manifest

CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
WRONG_ARGS = {**ARGS, "tensor_model_parallel_size": 3}


def configuration(plane: ControlPlane, namespace: str, port: int, host: str = "127.0.0.1") -> dict[str, Any]:
    """As the chart has it, with an address in place of the service."""
    authority = base64.b64encode((plane.folder / "ca.crt").read_bytes()).decode()
    return {
        "metadata": {"name": "jobs"},
        "webhooks": [
            {
                "name": "validate.megatrontrain.dev",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Ignore",
                "timeoutSeconds": 5,
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "rules": [
                    {
                        "apiGroups": ["megatrontrain.dev"],
                        "apiVersions": ["*"],
                        "resources": ["megatrontrainjobs"],
                        "operations": ["CREATE", "UPDATE"],
                    }
                ],
                "clientConfig": {"url": f"https://{host}:{port}/validate", "caBundle": authority},
            }
        ],
    }


def wrong(name: str = "wrong") -> dict[str, Any]:
    """A manifest with two problems that CEL cannot see."""
    return manifest(name, nprocPerNode="auto", args=WRONG_ARGS, env=[{"name": "RANK", "value": "1"}])


def is_asked(jobs: JobClient) -> bool:
    """Whether the API server already sends jobs to the webhook; a probe that passes is not stored."""
    try:
        jobs.plane.create(jobs.path("megatrontrainjobs"), wrong("probe"), dryRun="All")
    except Refused:
        return True
    return False
