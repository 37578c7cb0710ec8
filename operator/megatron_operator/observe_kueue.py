"""Raw Kueue objects as values: the Workload of a job, and where its assignment wants the pods. Judges nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from megatron_operator.observe import PodSetPlace, Workload

Object = Mapping[str, Any]


def read_workload(raw: Object) -> Workload:
    """One raw Workload as a value."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    assignments = (status.get("admission") or {}).get("podSetAssignments") or ()
    return Workload(
        name=metadata["name"],
        version=metadata["resourceVersion"],
        conditions=tuple(status.get("conditions") or ()),
        deleting=metadata.get("deletionTimestamp") is not None,
        flavors={each["name"]: _flavors(each) for each in assignments},
        by_topology=frozenset(each["name"] for each in assignments if each.get("topologyAssignment")),
        updates=_updates(status.get("admissionChecks") or ()),
    )


def place(workload: Workload, role: str, flavors: Mapping[str, Object]) -> PodSetPlace:
    """Where the pods of this role belong: labels and tolerations of the flavors, then what the checks add."""
    specs = [flavors[name] for name in workload.flavors.get(role, ()) if name in flavors]
    update = workload.updates.get(role, PodSetPlace())
    selector = {key: value for spec in specs for key, value in (spec.get("nodeLabels") or {}).items()}
    tolerations = [each for spec in specs for each in spec.get("tolerations") or ()]
    return PodSetPlace(
        node_selector={**selector, **update.node_selector},
        tolerations=(*tolerations, *update.tolerations),
        labels=update.labels,
        annotations=update.annotations,
        by_topology=role in workload.by_topology,
    )


def _flavors(assignment: Object) -> tuple[str, ...]:
    return tuple(sorted(set((assignment.get("flavors") or {}).values())))


def _updates(checks: Iterable[Object]) -> Mapping[str, PodSetPlace]:
    """What all admission checks together want, by role."""
    merged: dict[str, PodSetPlace] = {}
    for check in checks:
        for update in check.get("podSetUpdates") or ():
            before = merged.get(update["name"], PodSetPlace())
            merged[update["name"]] = PodSetPlace(
                node_selector={**before.node_selector, **(update.get("nodeSelector") or {})},
                tolerations=(*before.tolerations, *(update.get("tolerations") or ())),
                labels={**before.labels, **(update.get("labels") or {})},
                annotations={**before.annotations, **(update.get("annotations") or {})},
            )
    return merged
