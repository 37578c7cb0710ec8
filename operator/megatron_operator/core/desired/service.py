"""The headless service through which the pods of one attempt find their master."""

from __future__ import annotations

from typing import Any

from megatron_operator.api import names
from megatron_operator.core.desired import labels
from megatron_operator.core.job import Job

PORT_NAME = "rdzv"


def service(job: Job, attempt: int) -> dict[str, Any]:
    """One service per job; addresses are published before pods are ready, because rendezvous comes first."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": labels.metadata(job, names.service_name(job.name), {}),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.selector(job.name, attempt),
            "ports": [{"name": PORT_NAME, "port": job.network.master_port, "protocol": "TCP"}],
        },
    }
