"""The structural schema of a pod template overlay and the parts of it that the manifest uses elsewhere.

The data comes from crds/pod_template.py; nothing here is written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from megatron_operator.api.schema.parts import Schema, array, described, record, text_map


@cache
def overlay() -> Mapping[str, Any]:
    """Schema of spec.podTemplate."""
    text = files("megatron_operator.api.schema").joinpath("pod_template.json").read_text()
    schema: Mapping[str, Any] = json.loads(text)
    return schema


def spec_field(name: str) -> Schema:
    """Schema of one field of the pod spec."""
    return dict(overlay()["properties"]["spec"]["properties"][name])


def container_field(name: str) -> Schema:
    """Schema of one field of a container."""
    return dict(spec_field("containers")["items"]["properties"][name])


def items(help: str, schema: Schema, *, max_items: int = 64) -> Schema:
    """The list schema with a description and a bound."""
    return array(help, schema["items"], max_items=max_items)


def claim_template() -> Schema:
    """Schema of a PersistentVolumeClaim that the operator creates."""
    metadata = {
        "labels": text_map("Labels.", max_length=63),
        "annotations": text_map("Annotations.", max_length=16384),
    }
    fields = {"metadata": record("Labels and annotations of the claim.", metadata), "spec": _claim_spec()}
    return record("A claim that the operator creates, named <job>-checkpoint.", fields, required=("spec",))


def _claim_spec() -> Schema:
    template = spec_field("volumes")["items"]["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]
    return described(template["properties"]["spec"], "The claim's spec: accessModes, resources, storageClassName.")
