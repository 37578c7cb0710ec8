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
            "selector": selector(job, attempt),
            "ports": [{"name": PORT_NAME, "port": job.network.master_port, "protocol": "TCP"}],
        },
    }


def selector(job: Job, attempt: int) -> dict[str, str]:
    """The labels of the pods that have an address in this attempt.

    Our trainer asks for its master's alone, and each pod more has the addresses of a gang written once more as it
    starts; a program of the user's own may ask for the workers'.
    """
    return names.selector(job.name, attempt) if job.command else names.master_selector(job.name, attempt)
