"""What the operator's service account may do by its roles, and what it asked for by the API server's audit log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from local_cluster import helm_chart
from local_cluster.control_plane import ControlPlane

Object = Mapping[str, Any]
USER = f"system:serviceaccount:{helm_chart.NAMESPACE}:{helm_chart.FULL_NAME}"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


def granted(plane: ControlPlane) -> set[tuple[str, str]]:
    """(resource.group, verb) pairs of every role that is bound to the account."""
    return {
        (_with_group(resource, group), verb)
        for role in _roles(plane)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used(plane: ControlPlane) -> set[tuple[str, str]]:
    """(resource.group, verb) pairs that the account asked for."""
    asked = set()
    for event in of_operator(plane):
        if "objectRef" in event:
            ref = event["objectRef"]
            resource = "/".join(filter(None, (ref["resource"], ref.get("subresource"))))
            asked.add((_with_group(resource, ref.get("apiGroup", "")), event["verb"]))
    return asked


def refused(plane: ControlPlane) -> list[Object]:
    """Requests of the account that no role allows."""
    return [event for event in of_operator(plane) if event["responseStatus"]["code"] == 403]


def of_operator(plane: ControlPlane) -> Iterator[Object]:
    """Every request of the account."""
    return (event for event in plane.audit() if event["user"]["username"] == USER)


def _roles(plane: ControlPlane) -> Iterator[Object]:
    for kind in ("clusterrolebindings", "rolebindings"):
        for binding in plane.get(f"{RBAC}/{kind}")["items"]:
            subjects = binding.get("subjects") or ()
            if any((each["kind"], each["name"]) == ("ServiceAccount", helm_chart.FULL_NAME) for each in subjects):
                yield plane.get(_role_path(binding))


def _role_path(binding: Object) -> str:
    reference = binding["roleRef"]
    if reference["kind"] == "ClusterRole":
        return f"{RBAC}/clusterroles/{reference['name']}"
    return f"{RBAC}/namespaces/{binding['metadata']['namespace']}/roles/{reference['name']}"


def _with_group(resource: str, group: str) -> str:
    return f"{resource}.{group}" if group else resource
