"""The nodes on which a pod must not run, as part of its required node affinity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_operator.api import names

Object = Mapping[str, Any]
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def away_from(pod: Object, nodes: Sequence[str]) -> Object:
    """The pod, kept off these nodes by name: each alternative that its affinity allows is narrowed.

    By name and not by the label kubernetes.io/hostname, which some clouds fill with something else.
    """
    if not nodes:
        return pod
    spec = pod["spec"]
    affinity: Object = spec.get("affinity") or {}
    of_nodes: Object = affinity.get("nodeAffinity") or {}
    required: Object = of_nodes.get(REQUIRED) or {"nodeSelectorTerms": [{"matchFields": []}]}
    terms = [_narrowed(term, nodes) for term in required.get("nodeSelectorTerms") or ()]
    narrowed = {**of_nodes, REQUIRED: {**required, "nodeSelectorTerms": terms}}
    metadata: Object = pod["metadata"]
    annotations = {**(metadata.get("annotations") or {}), names.ANNOTATION_KEPT_FROM: ",".join(nodes)}
    return {
        **pod,
        "metadata": {**metadata, "annotations": annotations},
        "spec": {**spec, "affinity": {**affinity, "nodeAffinity": narrowed}},
    }


def _narrowed(term: Object, nodes: Sequence[str]) -> Object:
    """An empty term allows no node, and stays as it is. The server takes one name a requirement."""
    if not term:
        return term
    others = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in nodes]
    return {**term, "matchFields": [*(term.get("matchFields") or ()), *others]}
