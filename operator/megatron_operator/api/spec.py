"""The fields of `spec`, each declared once: name, type, default, range, help, when it may change. A table.

Schema, reader (manifest/build.py), admission policy, `mtj explain` and docs/fields.md are derived from it. A field may
change only while the job is suspended, because it shapes the pods, unless it is marked `changeable` otherwise. The
nested records are declared in api/values.py; `spec.args` is the contract's (`megatron_trainjob.args.schema`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from megatron_operator.api import names
from megatron_operator.api.schema import structural
from megatron_operator.api.schema.declared import declared, record_of
from megatron_operator.api.schema.parts import (
    Pattern,
    Schema,
    array,
    boolean,
    changeable,
    choice,
    defaulted,
    described,
    int_or_text,
    integer,
    open_object,
    quantity,
    record,
    text,
    text_map,
)
from megatron_operator.api.schema.pod_template import container_field, items, overlay, spec_field
from megatron_operator.api.values import (
    Checkpoint,
    CopyToPods,
    Elastic,
    FailurePolicy,
    Initializer,
    Network,
    RunPolicy,
    Scheduling,
    SuccessPolicy,
)
from megatron_trainjob.args.field import TRAINING_TASKS, TrainingTask

Object = Mapping[str, Any]

_PVC = "The volume of the checkpoints: an existing claim or a template for one. Without it they are lost with the pod."


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What to train, with what, and where: `spec` without its arguments, as resolved by `manifest.build`."""

    suspend: bool = declared(
        "suspend",
        changeable("Always", boolean("Stops the pods and keeps everything else until set to false.", default=False)),
    )
    managed_by: str = declared(
        "managedBy",
        changeable(
            "Never",
            choice(
                "The controller that runs the job. This operator ignores jobs with any other value than the default.",
                names.MANAGER,
                names.MULTIKUEUE_MANAGER,
                default=names.MANAGER,
            ),
        ),
    )
    task: TrainingTask = declared(
        "task",
        changeable("Never", choice("Pre-training, supervised fine-tuning or preference training.", *TRAINING_TASKS)),
    )
    strict: bool = declared("strict", boolean("Treats warnings as errors.", default=False))
    extra_args: Mapping[str, str] = declared(
        "extraArgs",
        text_map("Arguments that this CRD does not know yet, as text; the trainer parses and checks them."),
        absent={},
    )
    image: str = declared(
        "image", text("Image of the trainer. Default: the operator's MTJ_TRAINER_IMAGE.", max_length=1024)
    )
    image_pull_policy: str | None = declared(
        "imagePullPolicy", choice("When the image is pulled.", "Always", "IfNotPresent", "Never")
    )
    image_pull_secrets: tuple[Object, ...] = declared(
        "imagePullSecrets",
        items("Secrets in the same namespace for pulling the image.", spec_field("imagePullSecrets")),
    )
    command: tuple[str, ...] = declared(
        "command",
        array(
            "Replaces the trainer's command. Its pods have torchrun's variables (PET_...) as well, and an address "
            "each: NAME-aATTEMPT-worker-I.NAME.",
            text("", max_length=4096),
            max_items=256,
        ),
    )
    env: tuple[Object, ...] = declared(
        "env",
        items(
            "Environment of the trainer. Use valueFrom.secretKeyRef for secrets.",
            container_field("env"),
            max_items=256,
        ),
    )
    env_from: tuple[Object, ...] = declared(
        "envFrom", items("Sources of environment variables, as in a container.", container_field("envFrom"))
    )
    service_account_name: str | None = declared(
        "serviceAccountName", text("Service account of the pods; its token is not mounted.")
    )
    volumes: tuple[Object, ...] = declared("volumes", items("Volumes, as in a pod.", spec_field("volumes")))
    volume_mounts: tuple[Object, ...] = declared(
        "volumeMounts",
        items(
            "Mounts of the trainer and the initializers, as in a container.",
            container_field("volumeMounts"),
        ),
    )
    shm_size: str | int | None = declared(
        "shmSize",
        quantity("Size limit of /dev/shm, which counts against the memory limit. Default: no separate limit."),
    )
    pod_template: Object = declared(
        "podTemplate",
        described(dict(overlay()), "Labels, annotations and pod fields merged into every pod."),
        absent={},
    )
    copy_to_pods: CopyToPods = declared(
        "copyToPods",
        record_of(CopyToPods, "Labels and annotations that are copied from the job to its pods."),
        of=CopyToPods,
        absent=CopyToPods(labels=(), annotations=()),
    )
    master_template: Object = declared(
        "masterTemplate", open_object("Like podTemplate, for the master only; merged last."), absent={}
    )
    worker_template: Object = declared(
        "workerTemplate", open_object("Like podTemplate, for the workers only; merged last."), absent={}
    )
    num_nodes: int = declared(
        "numNodes", integer("Number of pods: one master, the rest workers.", ge=1, le=10_000, default=1)
    )
    nproc_per_node: int = declared(
        "nprocPerNode",
        int_or_text(
            'Processes in each pod. "auto" is the number of devices in the limits (GPUs of NVIDIA whole, shared or '
            "MIG, of AMD and Intel; Gaudi), or 1. Devices of resource claims are not counted.",
            default="auto",
            pattern=Pattern(r"^(auto|[1-9][0-9]{0,3})$", "auto or a whole number from 1 to 9999"),
        ),
    )
    resources: Object = declared(
        "resourcesPerNode",
        described(container_field("resources"), "Resources of each pod: limits, requests and claims."),
        absent={},
    )
    checkpoint: Checkpoint = declared(
        "checkpoint",
        defaulted(
            record_of(
                Checkpoint,
                "Where checkpoints are written, and how a job resumes from them.",
                inner={
                    "pvc": lambda fields: changeable("Never", record(_PVC, fields)),
                    "onTermination": lambda fields: defaulted(record("What happens on SIGTERM.", fields)),
                },
            )
        ),
        of=Checkpoint,
    )
    initializers: tuple[Initializer, ...] = declared(
        "initializers",
        array(
            "Downloads models or data sets once, before training.",
            record_of(
                Initializer,
                "Runs once, on the master, while the workers wait. It is not repeated after a restart.",
                required=("name", "targetPath"),
            ),
            max_items=16,
        ),
        of=Initializer,
    )
    network: Network = declared("network", defaulted(record_of(Network, "How the pods reach each other.")), of=Network)
    scheduling: Scheduling = declared(
        "scheduling",
        defaulted(record_of(Scheduling, "How the pods are scheduled, and whether as a gang.")),
        of=Scheduling,
    )
    run_policy: RunPolicy = declared(
        "runPolicy",
        changeable(
            "Always",
            defaulted(record_of(RunPolicy, "Deadlines, and what is cleaned up when the job ends.")),
        ),
        of=RunPolicy,
    )
    failure_policy: FailurePolicy = declared(
        "failurePolicy",
        changeable(
            "Always",
            defaulted(
                record_of(
                    FailurePolicy,
                    "How often and how soon a failed gang is restarted.",
                    inner={
                        "backoffSeconds": lambda fields: defaulted(
                            record("Delay before a counted restart; it doubles each time.", fields)
                        )
                    },
                )
            ),
        ),
        of=FailurePolicy,
    )
    success_policy: SuccessPolicy = declared(
        "successPolicy",
        changeable(
            "Always",
            choice(
                "Master: the job succeeds with the master; workers get a minute to end. All: every pod must succeed.",
                *get_args(SuccessPolicy),
                default="Master",
            ),
        ),
    )
    elastic: Elastic | None = declared(
        "elasticPolicy",
        record_of(
            Elastic,
            "Allows numNodes to change while the job runs: it saves, stops and continues with the new size.",
            required=("minNodes", "maxNodes"),
        ),
        of=Elastic,
    )


@cache
def spec_schema() -> Schema:
    """Schema of spec without args. A field marked "x-defaulted" is created for the defaults of its fields."""
    return record_of(Spec, "What to train, with what, and where.", required=("task",))


def readable(manifest: Mapping[str, Any], part: str) -> Mapping[str, Any] | None:
    """One part of the spec of a manifest that is invalid elsewhere, with defaults; None where it cannot be read."""
    given = (manifest.get("spec") or {}).get(part)
    schema = spec_schema()["properties"][part]
    if given is None or list(structural.check(given, schema, f"spec.{part}")):
        return None
    whole: Mapping[str, Any] = structural.defaulted(given, schema)
    return whole


def find_field(schema: Schema, path: str) -> Schema:
    """The field at this path below a record, each part a name. Raises KeyError for an unknown one."""
    for part in path.split("."):
        schema = schema["properties"][part]
    return schema
