"""The infrastructure fields of the manifest, each declared once: shape, default, help, when it may change. A table.

A field changes only while the job is suspended, for pods are made from it, unless it is marked `changeable` otherwise.
The records within are declared with their values in api/values.py. `spec.args` is not here: its schema comes from the
contract (`megatron_trainjob.args.schema`).
"""

from __future__ import annotations

from functools import cache
from typing import get_args

from megatron_operator.api import names
from megatron_operator.api.schema import pod_template
from megatron_operator.api.schema.declared import record_of
from megatron_operator.api.schema.parts import (
    Schema,
    array,
    boolean,
    changeable,
    choice,
    described,
    int_or_text,
    integer,
    quantity,
    record,
    text,
    text_map,
)
from megatron_operator.api.values import (
    Checkpoint,
    Elastic,
    FailurePolicy,
    Initializer,
    Network,
    RunPolicy,
    Scheduling,
    SuccessPolicy,
)
from megatron_trainjob.args.field import TRAINING_TASKS


@cache
def spec() -> Schema:
    """Schema of spec but for args. A field marked "x-defaulted" comes into being for the defaults of its parts."""
    return record("What to train, with what, and where.", {**_what(), **_pod(), **_where(), **_how()})


def find_field(schema: Schema, path: str) -> Schema:
    """The field at this path below a record, each part a name. Raises KeyError for an unknown one."""
    for part in path.split("."):
        schema = schema["properties"][part]
    return schema


def _defaulted(schema: Schema) -> Schema:
    return {**schema, "x-defaulted": True}


def _what() -> dict[str, Schema]:
    return {
        "suspend": changeable(
            "Always", boolean("Stops the pods and keeps everything else until it is false again.", default=False)
        ),
        "managedBy": changeable(
            "Never",
            choice(
                "The controller that runs the job. Any other than the default makes this operator leave it alone.",
                names.MANAGER,
                names.MULTIKUEUE_MANAGER,
                default=names.MANAGER,
            ),
        ),
        "task": changeable(
            "Never", choice("Pre-training, supervised fine-tuning or preference training.", *TRAINING_TASKS)
        ),
        "strict": boolean("Refuses the job for what is otherwise a warning.", default=False),
        "extraArgs": text_map("Arguments newer than this resource, as text; the trainer reads and checks them."),
    }


def _pod() -> dict[str, Schema]:
    secrets = pod_template.spec_field("imagePullSecrets")
    return {
        "image": text("Image of the trainer. Absent is the operator's own.", max_length=1024),
        "imagePullPolicy": choice("When the image is pulled.", "Always", "IfNotPresent", "Never"),
        "imagePullSecrets": pod_template.items("Secrets of the same namespace to pull the image.", secrets),
        "command": array("Replaces the trainer's command.", text("", max_length=4096), max_items=256),
        "env": pod_template.items(
            "Environment of the trainer. Secrets come in by valueFrom.secretKeyRef.",
            pod_template.container_field("env"),
            max_items=256,
        ),
        "envFrom": pod_template.items("Sources of environment.", pod_template.container_field("envFrom")),
        "serviceAccountName": text("Service account of the pods; its token is not mounted."),
        "volumes": pod_template.items("Volumes, as in a pod.", pod_template.spec_field("volumes")),
        "volumeMounts": pod_template.items(
            "Mounts of the trainer and the initializers, as in a container.",
            pod_template.container_field("volumeMounts"),
        ),
        "shmSize": quantity("Limit of /dev/shm, which counts against the memory limit. Absent is the pod's own."),
        "podTemplate": described(
            dict(pod_template.overlay()), "Labels, annotations and pod fields laid over every generated pod."
        ),
        "copyToPods": record(
            "Labels and annotations of the job that its pods bear too.",
            {
                "labels": array("Names; one that ends with * stands for all that begin so.", text("A name.")),
                "annotations": array("Names, as under labels.", text("A name.")),
            },
        ),
        "masterTemplate": _open("Like podTemplate, for the master only; laid over last."),
        "workerTemplate": _open("Like podTemplate, for the workers only; laid over last."),
    }


def _open(help: str) -> Schema:
    return {"type": "object", "description": help, "x-kubernetes-preserve-unknown-fields": True}


def _where() -> dict[str, Schema]:
    resources = described(
        pod_template.container_field("resources"), "Resources of each pod: limits, requests and claims."
    )
    return {
        "numNodes": integer("Number of pods: a master and workers.", ge=1, le=10_000, default=1),
        "nprocPerNode": int_or_text(
            'Processes in each pod. "auto" is the number of devices in the limits (GPUs of NVIDIA whole, shared or '
            "MIG, of AMD and Intel; Gaudi), or 1. Devices of resource claims are not counted.",
            default="auto",
            pattern=r"^(auto|[1-9][0-9]*)$",
        ),
        "resourcesPerNode": resources,
        "checkpoint": _defaulted(_checkpoint()),
        "initializers": array("Fetch models or data sets once, before training.", _initializer(), max_items=16),
        "network": _defaulted(_network()),
        "scheduling": _defaulted(_scheduling()),
    }


def _checkpoint() -> Schema:
    return record_of(
        Checkpoint,
        "Where checkpoints go and what becomes of them.",
        inner={
            "pvc": lambda fields: changeable(
                "Never",
                record(
                    "The volume of the checkpoints: an existing claim or a template for one. "
                    "Absent keeps them in the pod.",
                    fields,
                ),
            ),
            "onTermination": lambda fields: _defaulted(record("What happens on SIGTERM.", fields)),
        },
    )


def _initializer() -> Schema:
    return record_of(
        Initializer,
        "Runs once on the master; the workers wait for it. A finished one is never run again.",
        required=("name", "targetPath"),
    )


def _network() -> Schema:
    return record_of(Network, "How the pods reach each other.")


def _scheduling() -> Schema:
    return record_of(Scheduling, "Who places the pods, and whether all or none.")


def _how() -> dict[str, Schema]:
    return {
        "runPolicy": changeable("Always", _defaulted(_run_policy())),
        "failurePolicy": changeable("Always", _defaulted(_failure_policy())),
        "successPolicy": changeable(
            "Always",
            choice(
                "Whose success is that of the job: the master's, with a minute for the workers to end, or all pods'.",
                *get_args(SuccessPolicy),
                default="Master",
            ),
        ),
        "elasticPolicy": record_of(
            Elastic,
            "Allows numNodes to change while the job runs: it saves, stops and goes on with the new size.",
            required=("minNodes", "maxNodes"),
        ),
    }


def _run_policy() -> Schema:
    return record_of(RunPolicy, "When a job ends that does not end by itself, and what is left of it.")


def _failure_policy() -> Schema:
    return record_of(
        FailurePolicy,
        "How often and how fast a failed gang starts again.",
        inner={
            "backoffSeconds": lambda fields: _defaulted(
                record("Wait before a counted restart; it doubles each time.", fields)
            )
        },
    )
