"""The infrastructure fields of the manifest, each declared once: shape, default, help, when it may change. A table.

A field changes only while the job is suspended, for pods are made from it, unless it is marked `changeable` otherwise.
`spec.args` is not here: its schema comes from the contract (`megatron_trainjob.args.schema`).
"""

from __future__ import annotations

from functools import cache

from megatron_operator.api import names
from megatron_operator.api.schema import pod_template
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
from megatron_trainjob.args.field import TRAINING_TASKS
from megatron_trainjob.environment import DEFAULT_MASTER_PORT, RESUMES

PATH_PATTERN = r"^/"
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DEFAULT_HANG_TIMEOUT_S = 1800


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
    template = record(
        "A claim that the operator makes, named <job>-checkpoint.",
        {
            "metadata": record(
                "Labels and annotations of the claim.",
                {
                    "labels": text_map("Labels.", max_length=63),
                    "annotations": text_map("Annotations.", max_length=16384),
                },
            ),
            "spec": pod_template.claim_spec(),
        },
        required=("spec",),
    )
    claim = record(
        "The volume of the checkpoints: an existing claim or a template for one. Absent keeps them in the pod.",
        {"claimName": text("Name of an existing claim."), "template": template},
    )
    termination = record(
        "What happens on SIGTERM.",
        {
            "save": boolean("Saves at the next step boundary before the pod ends.", default=True),
            "gracePeriodSeconds": integer("Seconds that a save may take.", le=86400, default=120),
        },
    )
    return record(
        "Where checkpoints go and what becomes of them.",
        {
            "pvc": changeable("Never", claim),
            "mountPath": text("Where the volume appears.", default="/checkpoints", pattern=PATH_PATTERN),
            "subPath": text("Folder of this job on the volume; $(job) is its name.", default="$(job)"),
            "resume": choice(
                "Auto continues from the newest checkpoint if there is one, Required fails without one.",
                *RESUMES,
                default="Auto",
            ),
            "adopt": boolean(
                "Goes on from the checkpoints of another job that has ended in this folder.", default=False
            ),
            "onTermination": _defaulted(termination),
            "retainOnDelete": changeable(
                "Never", boolean("Keeps a claim made from the template when the job goes.", default=True)
            ),
        },
    )


def _initializer() -> Schema:
    return record(
        "Runs once on the master; the workers wait for it. A finished one is never run again.",
        {
            "name": text("Name of the container.", pattern=NAME_PATTERN, max_length=63),
            "image": text("Image; absent is the trainer's.", max_length=1024),
            "command": array(
                "What to run with STORAGE_URI and TARGET_PATH set. Absent downloads an hf:// source.",
                text("", max_length=4096),
                max_items=256,
            ),
            "storageUri": text("Source: hf://owner/model, hf://datasets/owner/name, or what the command reads."),
            "targetPath": text("Folder below a mounted volume.", pattern=PATH_PATTERN),
            "env": pod_template.items("Environment.", pod_template.container_field("env"), max_items=256),
            "envFrom": pod_template.items("Sources of environment.", pod_template.container_field("envFrom")),
        },
        required=("name", "targetPath"),
    )


def _network() -> Schema:
    rdma = record(
        "Network devices for each pod.",
        {
            "resource": text("Name of the device resource, for example rdma/ib."),
            "count": integer("Devices a pod.", ge=1, le=64, default=1),
            "ipcLock": boolean("Adds capability IPC_LOCK, which PodSecurity baseline forbids.", default=False),
        },
        required=("resource",),
    )
    return record(
        "How the pods reach each other.",
        {
            "masterPort": integer(
                f"Port of the rendezvous. Absent is {DEFAULT_MASTER_PORT}, or one derived from the job's uid with "
                "hostNetwork.",
                ge=1024,
                le=65535,
            ),
            "hostNetwork": boolean("Uses the node's network, which PodSecurity baseline forbids.", default=False),
            "rdma": rdma,
            "multusNetworks": array("Further networks (Multus), by name.", text("A network.")),
            "ncclEnv": text_map("NCCL_* variables, for example NCCL_IB_HCA: mlx5."),
        },
    )


def _scheduling() -> Schema:
    topology = record(
        "Keeps the pods close together.",
        {
            "key": text("Node label whose value the pods share; for Native gangs and Kueue.", max_length=316),
            "highestTierAllowed": integer("Highest tier of Volcano's network topology.", ge=1, le=64),
            "mode": choice("Whether it must hold.", "Required", "Preferred", default="Required"),
            "exclusive": boolean(
                "Keeps pods of other jobs out of that domain, and needs no queue: by affinities between pods.",
                default=False,
            ),
        },
    )
    return record(
        "Who places the pods, and whether all or none.",
        {
            "gang": choice(
                "The gang scheduler that places all pods or none.",
                "None",
                "Volcano",
                "Coscheduling",
                "Native",
                default="None",
            ),
            "minMember": integer("Pods that must fit at once. Absent is all of them.", ge=1, le=10_000),
            "queue": text("Volcano queue. A Kueue queue is named by the job's label kueue.x-k8s.io/queue-name."),
            "priorityClassName": text("Priority class of the pods and the group."),
            "schedulerName": text("Scheduler of the pods."),
            "scheduleTimeoutSeconds": integer("How long Coscheduling waits for the whole gang.", ge=1),
            "topology": topology,
        },
    )


def _how() -> dict[str, Schema]:
    return {
        "runPolicy": changeable("Always", _defaulted(_run_policy())),
        "failurePolicy": changeable("Always", _defaulted(_failure_policy())),
        "successPolicy": changeable(
            "Always",
            choice(
                "Whose success is that of the job: the master's, with a minute for the workers to end, or all pods'.",
                "Master",
                "All",
                default="Master",
            ),
        ),
        "elasticPolicy": record(
            "Allows numNodes to change while the job runs: it saves, stops and goes on with the new size.",
            {
                "minNodes": integer("Fewest nodes.", ge=1, le=10_000),
                "maxNodes": integer("Most nodes.", ge=1, le=10_000),
            },
            required=("minNodes", "maxNodes"),
        ),
    }


def _run_policy() -> Schema:
    return record(
        "When a job ends that does not end by itself, and what is left of it.",
        {
            "cleanPodPolicy": choice(
                "Which pods are deleted when the job has ended.", "None", "Running", "All", default="Running"
            ),
            "ttlSecondsAfterFinished": integer("Seconds after the end until the rest is deleted. Absent is never."),
            "ttlPolicy": choice(
                "What is deleted then: pods, service and arguments, or the job itself.",
                "DeletePods",
                "DeleteJob",
                default="DeletePods",
            ),
            "activeDeadlineSeconds": integer("Seconds that the job may take in all. Absent is any time.", ge=1),
            "schedulingTimeoutSeconds": integer(
                "Seconds that the job may wait for a place in its queue and on nodes. Absent is any time.", ge=1
            ),
            "startupDeadlineSeconds": integer(
                "Seconds that something (image, volume, sandbox, init container) may keep a placed pod from starting. "
                "Fetches by spec.initializers do not count.",
                ge=1,
                default=1200,
            ),
        },
    )


def _failure_policy() -> Schema:
    rule = record(
        "The first rule of which every given list holds the failure's value decides.",
        {
            "action": choice(
                "FailJob ends the job, Restart counts, RestartIgnoreLimit does not.",
                "FailJob",
                "Restart",
                "RestartIgnoreLimit",
            ),
            "onExitCodes": array("Exit codes.", integer("An exit code.", ge=1, le=255)),
            "onReasons": array("Reasons as in status.lastFailure.reason.", text("A reason.")),
        },
        required=("action",),
    )
    backoff = record(
        "Wait before a counted restart; it doubles each time.",
        {
            "initial": integer("Seconds before the first.", le=86400, default=10),
            "max": integer("Seconds at most.", le=86400, default=600),
        },
    )
    return record(
        "How often and how fast a failed gang starts again.",
        {
            "maxRestarts": integer("Counted restarts; disruptions are not counted.", le=1000, default=3),
            "resetAfterProgress": boolean("Counts anew once a newer checkpoint was written.", default=True),
            "backoffSeconds": _defaulted(backoff),
            "rules": array("Own answers to failures.", rule, max_items=32),
            "hangTimeoutSeconds": integer(
                "Seconds without a sign of life after which the gang is restarted; 0 never.",
                default=DEFAULT_HANG_TIMEOUT_S,
            ),
        },
    )
