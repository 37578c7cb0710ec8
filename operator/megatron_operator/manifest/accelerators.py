"""Which extended resources are devices that a process trains on, and how many of them a pod requests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from megatron_operator.core.desired.quantity import amount

Object = Mapping[str, Any]
MIG_PREFIX = "nvidia.com/mig-"
# GPUs whole, shared (time-slicing) and sliced (MIG); AMD's, Intel's, and Gaudi.
DEVICES = re.compile(
    r"nvidia\.com/(gpu|mig-[\w.]+?)(\.shared)?|amd\.com/gpu|habana\.ai/gaudi|gpu\.intel\.com/(i915|xe)(_monitoring)?"
)


def count(resources: Object) -> int:
    """Devices in the limits, or in the requests where the limits lack the resource."""
    amounts = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    return int(sum((_amount(value) for name, value in amounts.items() if DEVICES.fullmatch(name)), Decimal(0)))


def uncounted(spec: Object) -> Iterator[tuple[str, object, str]]:
    """(path, value, message) for each reason why "auto" may count fewer devices than there are."""
    resources = spec.get("resourcesPerNode") or {}
    limits = resources.get("limits") or {}
    for name, value in (resources.get("requests") or {}).items():
        if DEVICES.fullmatch(name) and name not in limits:
            message = "is rejected by Kubernetes under requests alone; set it under limits"
            yield f"spec.resourcesPerNode.requests.{name}", value, message
    yield from _unused_claims(spec)
    if str(spec["nprocPerNode"]) != "auto" or count(resources):
        return
    remedy = '; nprocPerNode "auto" is 1, so set a number'
    if claims := resources.get("claims"):
        yield "spec.resourcesPerNode.claims", claims[0].get("name"), f"has devices that cannot be counted{remedy}"
    network = (spec["network"].get("rdma") or {}).get("resource")
    for name, value in limits.items():
        if "/" in name and name != network and not name.startswith("rdma/"):
            path = f"spec.resourcesPerNode.limits.{name}"
            yield path, value, f"is not a known training device{remedy} if it is one"


def _unused_claims(spec: Object) -> Iterator[tuple[str, object, str]]:
    """Devices that a pod claims (DRA) but no container uses."""
    pod = (spec.get("podTemplate") or {}).get("spec") or {}
    containers = [*(pod.get("containers") or ()), *(pod.get("initContainers") or ())]
    resources = [spec.get("resourcesPerNode") or {}, *((each.get("resources") or {}) for each in containers)]
    used = {claim.get("name") for each in resources for claim in each.get("claims") or ()}
    for index, claim in enumerate(pod.get("resourceClaims") or ()):
        if claim.get("name") not in used:
            path = f"spec.podTemplate.spec.resourceClaims[{index}].name"
            yield path, claim.get("name"), "is claimed but no container uses it; name it under resourcesPerNode.claims"


def _amount(value: object) -> Decimal:
    try:
        return amount(str(value))
    except ValueError:
        return Decimal(0)
