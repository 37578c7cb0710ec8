"""The records of spec as values, each field declared once: name, type, default, range, help, when it may change.

A table. What api/spec.py says of the fields of spec itself, and what follows from them, holds for these too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from megatron_operator.api.schema import pod_template
from megatron_operator.api.schema.declared import declared, record_of
from megatron_operator.api.schema.parts import (
    array,
    boolean,
    changeable,
    choice,
    integer,
    record,
    text,
    text_map,
)
from megatron_trainjob.environment import DEFAULT_MASTER_PORT, RESUMES, Resume

Object = Mapping[str, Any]
Gang = Literal["None", "Volcano", "Coscheduling", "Native"]
RuleAction = Literal["FailJob", "Restart", "RestartIgnoreLimit"]
TopologyMode = Literal["Required", "Preferred"]
CleanPodPolicy = Literal["None", "Running", "All"]
TtlPolicy = Literal["DeletePods", "DeleteJob"]
SuccessPolicy = Literal["Master", "All"]

PATH_PATTERN = r"^/"
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DEFAULT_HANG_TIMEOUT_S = 1800

_CLAIM_TEMPLATE = record(
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


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where checkpoints go. Without a claim they lie in the pod, or in the state folder on one machine."""

    claim_name: str | None = declared("pvc.claimName", text("Name of an existing claim."))
    claim_template: Object | None = declared("pvc.template", _CLAIM_TEMPLATE)
    mount_path: str = declared(
        "mountPath", text("Where the volume appears.", default="/checkpoints", pattern=PATH_PATTERN)
    )
    sub_path: str = declared("subPath", text("Folder of this job on the volume; $(job) is its name.", default="$(job)"))
    resume: Resume = declared(
        "resume",
        choice(
            "Auto continues from the newest checkpoint if there is one, Required fails without one.",
            *RESUMES,
            default="Auto",
        ),
    )
    adopts: bool = declared(
        "adopt", boolean("Goes on from the checkpoints of another job that has ended in this folder.", default=False)
    )
    save_on_termination: bool = declared(
        "onTermination.save", boolean("Saves at the next step boundary before the pod ends.", default=True)
    )
    grace_period_s: int = declared(
        "onTermination.gracePeriodSeconds", integer("Seconds that a save may take.", le=86400, default=120)
    )
    retain_on_delete: bool = declared(
        "retainOnDelete",
        changeable("Never", boolean("Keeps a claim made from the template when the job goes.", default=True)),
    )

    @property
    def directory(self) -> str:
        """The folder that the trainer saves to unless the arguments name another."""
        return f"{self.mount_path.rstrip('/')}/{self.sub_path}".rstrip("/")


@dataclass(frozen=True, kw_only=True)
class CopyToPods:
    """Labels and annotations of the job that its pods bear too, by whole name or by a beginning that ends with *."""

    labels: tuple[str, ...] = declared(
        "labels", array("Names; one that ends with * stands for all that begin so.", text("A name."))
    )
    annotations: tuple[str, ...] = declared("annotations", array("Names, as under labels.", text("A name.")))


@dataclass(frozen=True, kw_only=True)
class Rdma:
    """Network devices asked for by each pod."""

    resource: str = declared("resource", text("Name of the device resource, for example rdma/ib."))
    count: int = declared("count", integer("Devices a pod.", ge=1, le=64, default=1))
    ipc_lock: bool = declared(
        "ipcLock", boolean("Adds capability IPC_LOCK, which PodSecurity baseline forbids.", default=False)
    )


@dataclass(frozen=True, kw_only=True)
class Network:
    """How the pods reach each other."""

    master_port: int = declared(
        "masterPort",
        integer(
            f"Port of the rendezvous. Absent is {DEFAULT_MASTER_PORT}, or one derived from the job's uid with "
            "hostNetwork.",
            ge=1024,
            le=65535,
        ),
    )
    host_network: bool = declared(
        "hostNetwork", boolean("Uses the node's network, which PodSecurity baseline forbids.", default=False)
    )
    rdma: Rdma | None = declared(
        "rdma", record_of(Rdma, "Network devices for each pod.", required=("resource",)), of=Rdma
    )
    multus_networks: tuple[str, ...] = declared(
        "multusNetworks", array("Further networks (Multus), by name.", text("A network."))
    )
    nccl_env: Mapping[str, str] = declared(
        "ncclEnv", text_map("NCCL_* variables, for example NCCL_IB_HCA: mlx5."), absent={}
    )


@dataclass(frozen=True, kw_only=True)
class Initializer:
    """Fetches a model or a data set once into a volume of the master, before the trainer starts."""

    name: str = declared("name", text("Name of the container.", pattern=NAME_PATTERN, max_length=63))
    image: str = declared("image", text("Image; absent is the trainer's.", max_length=1024))
    command: tuple[str, ...] = declared(
        "command",
        array(
            "What to run with STORAGE_URI and TARGET_PATH set. Absent downloads an hf:// source.",
            text("", max_length=4096),
            max_items=256,
        ),
    )
    storage_uri: str = declared(
        "storageUri", text("Source: hf://owner/model, hf://datasets/owner/name, or what the command reads."), absent=""
    )
    target_path: str = declared("targetPath", text("Folder below a mounted volume.", pattern=PATH_PATTERN))
    env: tuple[Object, ...] = declared(
        "env", pod_template.items("Environment.", pod_template.container_field("env"), max_items=256)
    )
    env_from: tuple[Object, ...] = declared(
        "envFrom", pod_template.items("Sources of environment.", pod_template.container_field("envFrom"))
    )


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Pods that belong close together: `key` is a node label, or Volcano's highest tier.

    exclusive: no other job's pods in that domain, kept by affinities between pods.
    """

    key: str | None = declared(
        "key", text("Node label whose value the pods share; for Native gangs and Kueue.", max_length=316)
    )
    highest_tier_allowed: int | None = declared(
        "highestTierAllowed", integer("Highest tier of Volcano's network topology.", ge=1, le=64)
    )
    mode: TopologyMode = declared("mode", choice("Whether it must hold.", *get_args(TopologyMode), default="Required"))
    exclusive: bool = declared(
        "exclusive",
        boolean(
            "Keeps pods of other jobs out of that domain, and needs no queue: by affinities between pods.",
            default=False,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Scheduling:
    """Who places the pods, and whether all or none."""

    gang: Gang = declared(
        "gang",
        choice(
            "The gang scheduler that places all pods or none.",
            *get_args(Gang),
            default="None",
        ),
    )
    min_member: int = declared(
        "minMember", integer("Pods that must fit at once. Absent is all of them.", ge=1, le=10_000)
    )
    queue: str | None = declared(
        "queue", text("Volcano queue. A Kueue queue is named by the job's label kueue.x-k8s.io/queue-name.")
    )
    priority_class_name: str | None = declared("priorityClassName", text("Priority class of the pods and the group."))
    scheduler_name: str | None = declared("schedulerName", text("Scheduler of the pods."))
    schedule_timeout_s: int | None = declared(
        "scheduleTimeoutSeconds", integer("How long Coscheduling waits for the whole gang.", ge=1)
    )
    topology: Topology | None = declared("topology", record_of(Topology, "Keeps the pods close together."), of=Topology)


@dataclass(frozen=True, kw_only=True)
class RunPolicy:
    """When a job ends that does not end by itself, and what is left of it."""

    clean_pod_policy: CleanPodPolicy = declared(
        "cleanPodPolicy",
        choice("Which pods are deleted when the job has ended.", *get_args(CleanPodPolicy), default="Running"),
    )
    ttl_s: int | None = declared(
        "ttlSecondsAfterFinished", integer("Seconds after the end until the rest is deleted. Absent is never.")
    )
    ttl_policy: TtlPolicy = declared(
        "ttlPolicy",
        choice(
            "What is deleted then: pods, service and arguments, or the job itself.",
            *get_args(TtlPolicy),
            default="DeletePods",
        ),
    )
    active_deadline_s: int | None = declared(
        "activeDeadlineSeconds", integer("Seconds that the job may take in all. Absent is any time.", ge=1)
    )
    scheduling_timeout_s: int | None = declared(
        "schedulingTimeoutSeconds",
        integer("Seconds that the job may wait for a place in its queue and on nodes. Absent is any time.", ge=1),
    )
    startup_deadline_s: int = declared(
        "startupDeadlineSeconds",
        integer(
            "Seconds that something (image, volume, sandbox, init container) may keep a placed pod from starting. "
            "Fetches by spec.initializers do not count.",
            ge=1,
            default=1200,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The user's own answer to a failure; the first rule that matches decides."""

    action: RuleAction = declared(
        "action",
        choice(
            "FailJob ends the job, Restart counts, RestartIgnoreLimit does not.",
            *get_args(RuleAction),
        ),
    )
    exit_codes: tuple[int, ...] = declared("onExitCodes", array("Exit codes.", integer("An exit code.", ge=1, le=255)))
    reasons: tuple[str, ...] = declared(
        "onReasons", array("Reasons as in status.lastFailure.reason.", text("A reason."))
    )


@dataclass(frozen=True, kw_only=True)
class FailurePolicy:
    """How often and how fast a failed gang starts again."""

    max_restarts: int = declared(
        "maxRestarts", integer("Counted restarts; disruptions are not counted.", le=1000, default=3)
    )
    reset_after_progress: bool = declared(
        "resetAfterProgress", boolean("Starts over once a newer checkpoint was written.", default=True)
    )
    backoff_initial_s: int = declared(
        "backoffSeconds.initial", integer("Seconds before the first.", le=86400, default=10)
    )
    backoff_max_s: int = declared("backoffSeconds.max", integer("Seconds at most.", le=86400, default=600))
    rules: tuple[Rule, ...] = declared(
        "rules",
        array(
            "Own answers to failures.",
            record_of(
                Rule,
                "The first rule of which every given list holds the failure's value decides.",
                required=("action",),
            ),
            max_items=32,
        ),
        of=Rule,
    )
    hang_timeout_s: int = declared(
        "hangTimeoutSeconds",
        integer(
            "Seconds without a sign of life after which the gang is restarted; 0 never.",
            default=DEFAULT_HANG_TIMEOUT_S,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Elastic:
    """Between which numbers of nodes a running job may be resized."""

    min_nodes: int = declared("minNodes", integer("Fewest nodes.", ge=1, le=10_000))
    max_nodes: int = declared("maxNodes", integer("Most nodes.", ge=1, le=10_000))
