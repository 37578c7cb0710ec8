"""CRDs of other projects in the shape that the operator meets, for stand-ins of their controllers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from local_cluster.control_plane import ControlPlane
from tests.support.operator.job_client import CRDS, wait_until

Object = Mapping[str, Any]
ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def install(plane: ControlPlane, api: str, kind: str, properties: Object, *, scope: str = "Namespaced") -> None:
    """Installs one kind of `api` ("/apis/GROUP/VERSION"), with a status of its own if it has one, and waits for it."""
    group, version = api.removeprefix("/apis/").split("/")
    singular = kind.lower()
    plural = singular + ("es" if singular.endswith("s") else "s")
    served = {
        "name": version,
        "served": True,
        "storage": True,
        "subresources": {"status": {}} if "status" in properties else {},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}},
    }
    names = {"kind": kind, "singular": singular, "plural": plural, "listKind": f"{kind}List"}
    # Groups under k8s.io are refused without this annotation.
    approval = {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs"}
    metadata = {"name": f"{plural}.{group}", "annotations": approval}
    spec = {"group": group, "scope": scope, "names": names, "versions": [served]}
    plane.create(CRDS, {"metadata": metadata, "spec": spec})
    wait_until(lambda: plane.get(f"{api}/{plural}"), bool, f"{plural} of {group} to be served")
