"""Raw Kueue objects as values: the Workload of a job, and the placement that it assigns. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Object = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PodSetPlace:
    """The placement that a queue assigns to the pods of one role; merged into pods created from now on."""

    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Object, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    by_topology: bool = False


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A Kueue Workload of the job. `flavors`: role -> names of the ResourceFlavors that were assigned.

    updates: role -> what admission checks add to the pods. `version` is the resourceVersion.
    """

    name: str
    version: str = ""
    conditions: tuple[Object, ...] = ()
    deleting: bool = False
    flavors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by_topology: frozenset[str] = frozenset()
    updates: Mapping[str, PodSetPlace] = field(default_factory=dict)

    def is_true(self, type_: str) -> bool:
        """Whether this condition is True."""
        condition = self.condition(type_)
        return condition is not None and condition["status"] == "True"

    def condition(self, type_: str) -> Object | None:
        """The condition with this type."""
        return next((each for each in self.conditions if each["type"] == type_), None)


@dataclass(frozen=True, kw_only=True)
class KueueSeen:
    """The observed state of Kueue for one job. `served` is False when the cluster does not serve Workloads.

    priority: value of the job's priority class, 0 without one, None if the named class does not exist.
    places: role -> placement of its pods.
    """

    served: bool = True
    workloads: tuple[Workload, ...] = ()
    priority: int | None = 0
    places: Mapping[str, PodSetPlace] = field(default_factory=dict)


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
    """The placement of this role's pods: labels and tolerations of the flavors, then what the checks add."""
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
    """The pod updates of all admission checks combined, by role."""
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
