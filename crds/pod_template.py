"""Prints the structural schema of a Kubernetes pod template, without descriptions, from the Python client's models.

    python crds/pod_template.py > operator/megatron_operator/api/schema/pod_template.json

Needs the development extra; the result is data, so that operator and CLI need no Kubernetes client to check a manifest.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from kubernetes import client

Schema = dict[str, Any]

SCALARS: dict[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "datetime": {"type": "string"},
    "object": {"x-kubernetes-int-or-string": True},
}
QUANTITY: Schema = {"x-kubernetes-int-or-string": True}
QUANTITY_FIELDS = frozenset({"sizeLimit", "divisor"})
QUANTITY_MAPS = frozenset({"limits", "requests", "overhead"})
# Of the metadata a template sets labels and annotations; the operator names and owns the pods.
METADATA_FIELDS = ("labels", "annotations")
# Cannot be set when a pod is created, or (volumes) have lost their driver to a CSI driver or to none.
LEFT_OUT = frozenset(
    {
        "ephemeralContainers",
        "awsElasticBlockStore",
        "azureDisk",
        "azureFile",
        "cephfs",
        "cinder",
        "flexVolume",
        "flocker",
        "gcePersistentDisk",
        "gitRepo",
        "glusterfs",
        "photonPersistentDisk",
        "portworxVolume",
        "quobyte",
        "rbd",
        "scaleIO",
        "storageos",
        "vsphereVolume",
    }
)


def pod_template() -> Schema:
    """The schema of an overlay: like a pod template, but nothing of the spec is required."""
    spec = {key: value for key, value in schema_of("V1PodSpec").items() if key != "required"}
    metadata = {name: schema_of("dict(str, str)") for name in METADATA_FIELDS}
    return {"type": "object", "properties": {"metadata": {"type": "object", "properties": metadata}, "spec": spec}}


def schema_of(type_name: str, field: str = "") -> Schema:
    """The schema of a client type such as V1Pod, list[str] or dict(str, str)."""
    if field in QUANTITY_FIELDS:
        return QUANTITY
    if type_name in SCALARS:
        return dict(SCALARS[type_name])
    listed = re.fullmatch(r"[Ll]ist\[(.+)\]", type_name)
    if listed:
        return {"type": "array", "items": schema_of(listed.group(1))}
    mapped = re.fullmatch(r"[Dd]ict[\(\[]str, (.+)[\)\]]", type_name)
    if mapped:
        values = QUANTITY if field in QUANTITY_MAPS else schema_of(mapped.group(1))
        return {"type": "object", "additionalProperties": values}
    return schema_of_model(getattr(client, type_name))


def schema_of_model(model: Any) -> Schema:  # noqa: ANN401 (a generated class)
    """The schema of one model class with all it contains."""
    fields, names = model.openapi_types, model.attribute_map
    properties = {
        names[field]: schema_of(type_name, names[field])
        for field, type_name in fields.items()
        if names[field] not in LEFT_OUT
    }
    required = sorted(names[field] for field, each in model.model_fields.items() if each.is_required())
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


if __name__ == "__main__":
    json.dump(pod_template(), sys.stdout, indent=0, sort_keys=True)
    sys.stdout.write("\n")
