"""How much memory the GPUs have that a job asks for, as far as its manifest says so. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from megatron_operator.core.desired.overlay import merged
from megatron_operator.core.job import Job

# Labels that NVIDIA's GPU feature discovery puts on nodes: megabytes, and a product such as NVIDIA-H100-80GB-HBM3.
MEMORY_LABEL = "nvidia.com/gpu.memory"
PRODUCT_LABEL = "nvidia.com/gpu.product"
MIB, GIB = 1024**2, 1024**3


def of_job(job: Job) -> int | None:
    """Bytes of one GPU by the labels that the job's pods select their nodes with; None when none tells."""
    selector = _node_selector(job)
    if MEMORY_LABEL in selector:
        return int(selector[MEMORY_LABEL]) * MIB
    size = re.search(r"(\d+)GB", str(selector.get(PRODUCT_LABEL, "")))
    return int(size.group(1)) * GIB if size else None


def _node_selector(job: Job) -> Mapping[str, Any]:
    template = merged(job.pod_template, job.worker_template)
    selector: Mapping[str, Any] = template.get("spec", {}).get("nodeSelector") or {}
    return selector
