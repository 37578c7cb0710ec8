"""For every field of spec a valid value that is not its default, made from the schema: {path: value}."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_operator.api.spec import spec_schema

Schema = Mapping[str, Any]
# Values that follow from no schema: objects of Kubernetes, and text of which another rule knows the form.
GIVEN: dict[str, Any] = {
    "managedBy": "kueue.x-k8s.io/multikueue",
    "imagePullSecrets": [{"name": "registry"}],
    "env": [{"name": "A", "value": "b"}],
    "envFrom": [{"configMapRef": {"name": "a"}}],
    "volumes": [{"name": "scratch", "emptyDir": {}}],
    "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
    "podTemplate": {"metadata": {"labels": {"a": "b"}}},
    "masterTemplate": {"spec": {"nodeSelector": {"a": "b"}}},
    "workerTemplate": {"spec": {"nodeSelector": {"a": "b"}}},
    "resourcesPerNode": {"limits": {"cpu": 1}},
    "nprocPerNode": 2,
    "initializers": [{"name": "fetch", "storageUri": "hf://a/b", "targetPath": "/checkpoints/a"}],
    "checkpoint.pvc": {"claimName": "disk"},
    "checkpoint.memory": {"sizeLimit": "1Gi"},
    "network.rdma": {"resource": "rdma/ib"},
    "network.ncclEnv": {"NCCL_DEBUG": "INFO"},
    "elasticPolicy": {"minNodes": 1, "maxNodes": 8},
    "failurePolicy.rules": [{"action": "FailJob", "onExitCodes": [3]}],
}


def samples() -> Iterator[tuple[str, Any]]:
    """(path below spec, value) of every field; records of ours by their fields, unless GIVEN has them whole."""
    yield from _below(spec_schema(), "")


def nested(path: str, value: object) -> dict[str, Any]:
    """The value under its path, as a part of spec."""
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def _below(schema: Schema, path: str) -> Iterator[tuple[str, Any]]:
    for name, part in schema["properties"].items():
        where = f"{path}{name}"
        if part.get("x-record") and where not in GIVEN:
            yield from _below(part, f"{where}.")
        else:
            yield where, GIVEN[where] if where in GIVEN else _other(part)


def _other(schema: Schema) -> object:
    """A value that the schema allows and that is not the default."""
    if "enum" in schema:
        return next(each for each in schema["enum"] if each != schema.get("default", schema["enum"][0]))
    if schema.get("type") == "boolean":
        return not schema.get("default", False)
    if schema.get("type") == "integer":
        return max(schema.get("default", 0), schema["minimum"]) + 1
    if schema.get("type") == "array":
        return [_other(schema["items"])]
    if schema.get("type") == "object":
        return {"a": "b"}
    if schema.get("x-kubernetes-int-or-string"):
        return "1Gi"
    return "/x" if schema.get("pattern", "").startswith("^/") else "x"
