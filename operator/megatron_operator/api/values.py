"""The nested records of spec, each field declared once: name, type, default, range, help, when it may change.

A table; everything that api/spec.py says about the fields of spec itself applies here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from megatron_operator.api.schema import pod_template
from megatron_operator.api.schema.declared import declared, record_of
from megatron_operator.api.schema.parts import (
    Pattern,
    array,
    boolean,
    changeable,
    choice,
    integer,
    quantity,
    text,
    text_map,
)
from megatron_trainjob.environment import DEFAULT_MASTER_PORT, RESUMES, Resume

Object = Mapping[str, Any]
Gang = Literal["None", "Volcano", "Coscheduling", "Native"]
RuleAction = Literal["FailJob", "Restart", "RestartIgnoreLimit"]
TopologyMode = Literal["Required", "Preferred"]
CleanPodPolicy = Literal["None", "Running", "All"]
DEFAULT_CLEAN_POD_POLICY: CleanPodPolicy = "Running"
TtlPolicy = Literal["DeletePods", "DeleteJob"]
SuccessPolicy = Literal["Master", "All"]

PATH = Pattern(r"^/", "an absolute path such as /checkpoints")
NAME = Pattern(
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "lower-case letters, digits and '-', with a letter or digit at both ends"
)
DEFAULT_HANG_TIMEOUT_S = 1800


@dataclass(frozen=True, kw_only=True)
class MemoryCheckpoints:
    """Checkpoints in the memory of the nodes, for restarts on the same nodes."""

    interval: int = declared("intervalIterations", integer("Steps from one to the next.", ge=1, default=10))
    size_limit: str | int = declared(
        "sizeLimit",
        quantity(
            "Most memory that they take on each node: two generations, with copies of another node's. It is added to "
            "the memory request and limit of the pods."
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where checkpoints are written: a claim, else the pod's own disk, or the state directory of a local run."""

    claim_name: str | None = declared("pvc.claimName", text("Name of an existing claim."))
    claim_template: Object | None = declared("pvc.template", pod_template.claim_template())
    mount_path: str = declared("mountPath", text("Where the volume is mounted.", default="/checkpoints", pattern=PATH))
    sub_path: str = declared(
        "subPath", text("Directory of this job on the volume; $(job) stands for its name.", default="$(job)")
    )
    resume: Resume = declared(
        "resume",
        choice(
            "Auto resumes from the newest checkpoint if there is one, Required fails without one, Never starts over.",
            *RESUMES,
            default="Auto",
        ),
    )
    adopts: bool = declared(
        "adopt", boolean("Adopts the checkpoints that another, finished job left in this directory.", default=False)
    )
    save_on_termination: bool = declared(
        "onTermination.save", boolean("Saves at the next step boundary before the pod ends.", default=True)
    )
    grace_period_s: int = declared(
        "onTermination.gracePeriodSeconds", integer("Time limit for a save, in seconds.", le=86400, default=120)
    )
    retain_on_delete: bool = declared(
        "retainOnDelete",
        changeable("Never", boolean("Keeps a claim made from the template when the job is deleted.", default=True)),
    )
    memory: MemoryCheckpoints | None = declared(
        "memory",
        record_of(
            MemoryCheckpoints,
            "More frequent checkpoints in the memory of the nodes, from which a restart in place continues.",
            required=("sizeLimit",),
        ),
        of=MemoryCheckpoints,
    )

    @property
    def directory(self) -> str:
        """The directory that the trainer saves to unless the arguments name another."""
        return f"{self.mount_path.rstrip('/')}/{self.sub_path}".rstrip("/")


@dataclass(frozen=True, kw_only=True)
class CopyToPods:
    """Labels and annotations that are copied from the job to its pods, by name or by prefix (`cost/*`)."""

    labels: tuple[str, ...] = declared("labels", array("Names; one that ends with * is a prefix.", text("A name.")))
    annotations: tuple[str, ...] = declared("annotations", array("Names, as under labels.", text("A name.")))


@dataclass(frozen=True, kw_only=True)
class Rdma:
    """RDMA devices of each pod."""

    resource: str = declared("resource", text("Name of the extended resource, for example rdma/ib."))
    count: int = declared("count", integer("Devices per pod.", ge=1, le=64, default=1))
    ipc_lock: bool = declared(
        "ipcLock",
        boolean(
            "Adds the capability IPC_LOCK, which PodSecurity baseline forbids and only root (podTemplate) can use.",
            default=False,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Network:
    """How the pods reach each other."""

    master_port: int = declared(
        "masterPort",
        integer(
            f"Port of the rendezvous. Default: {DEFAULT_MASTER_PORT}, or one derived from the job's uid with "
            "hostNetwork.",
            ge=1024,
            le=65535,
        ),
    )
    host_network: bool = declared(
        "hostNetwork", boolean("Uses the node's network, which PodSecurity baseline forbids.", default=False)
    )
    rdma: Rdma | None = declared("rdma", record_of(Rdma, "RDMA devices of each pod.", required=("resource",)), of=Rdma)
    multus_networks: tuple[str, ...] = declared(
        "multusNetworks", array("Additional networks (Multus), by name.", text("A network."))
    )
    nccl_env: Mapping[str, str] = declared(
        "ncclEnv", text_map("NCCL_, SHARP_ and UCX_ variables, for example NCCL_IB_HCA: mlx5."), absent={}
    )


@dataclass(frozen=True, kw_only=True)
class Initializer:
    """Downloads a model or a data set once, on the master, before the trainer starts."""

    name: str = declared("name", text("Name of the init container.", pattern=NAME, max_length=63))
    image: str = declared("image", text("Image. Default: the trainer's.", max_length=1024))
    command: tuple[str, ...] = declared(
        "command",
        array(
            "What to run, with STORAGE_URI and TARGET_PATH set. Default: download an hf:// source.",
            text("", max_length=4096),
            max_items=256,
        ),
    )
    storage_uri: str = declared(
        "storageUri", text("Source: hf://owner/model, hf://datasets/owner/name, or what the command reads."), absent=""
    )
    target_path: str = declared("targetPath", text("Directory on a mounted volume.", pattern=PATH))
    env: tuple[Object, ...] = declared(
        "env", pod_template.items("Environment, as in a container.", pod_template.container_field("env"), max_items=256)
    )
    env_from: tuple[Object, ...] = declared(
        "envFrom",
        pod_template.items(
            "Sources of environment variables, as in a container.", pod_template.container_field("envFrom")
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The topology domain of the pods: the nodes with one value of label `key`, or one of Volcano's tiers.

    exclusive: no other job's pods in that domain, kept by affinities between pods.
    """

    key: str | None = declared(
        "key", text("Node label whose value all pods share, for Native gangs, Kueue and exclusive.", max_length=316)
    )
    highest_tier_allowed: int | None = declared(
        "highestTierAllowed", integer("Highest tier of Volcano's network topology.", ge=1, le=64)
    )
    mode: TopologyMode = declared(
        "mode",
        choice(
            "Whether the job waits for such a domain (Required) or starts without one (Preferred).",
            *get_args(TopologyMode),
            default="Required",
        ),
    )
    exclusive: bool = declared(
        "exclusive",
        boolean(
            "Keeps other jobs' pods out of that domain by inter-pod anti-affinity; needs no queue.",
            default=False,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Scheduling:
    """How the pods are scheduled, and whether as a gang."""

    gang: Gang = declared(
        "gang",
        choice(
            "The gang scheduler that places all pods or none.",
            *get_args(Gang),
            default="None",
        ),
    )
    min_member: int = declared(
        "minMember", integer("Pods that must be schedulable together. Default: all.", ge=1, le=10_000)
    )
    queue: str | None = declared(
        "queue", text("Volcano queue. A Kueue queue is set by the job's label kueue.x-k8s.io/queue-name.")
    )
    priority_class_name: str | None = declared("priorityClassName", text("Priority class of the pods and the group."))
    scheduler_name: str | None = declared("schedulerName", text("Scheduler of the pods."))
    spares: int = declared(
        "spares",
        integer(
            "Pods without ranks that hold a node each once the gang has its own, so that the gang finds room again "
            "after it has lost nodes. They have the resources of a worker and count toward quotas.",
            le=64,
            default=0,
        ),
    )
    schedule_timeout_s: int | None = declared(
        "scheduleTimeoutSeconds", integer("How long Coscheduling waits for the whole gang, in seconds.", ge=1)
    )
    topology: Topology | None = declared(
        "topology", record_of(Topology, "Places the pods in one domain, such as a rack."), of=Topology
    )


@dataclass(frozen=True, kw_only=True)
class RunPolicy:
    """Deadlines, and what is cleaned up when the job ends."""

    clean_pod_policy: CleanPodPolicy = declared(
        "cleanPodPolicy",
        choice(
            "Which pods are deleted when the job has ended.",
            *get_args(CleanPodPolicy),
            default=DEFAULT_CLEAN_POD_POLICY,
        ),
    )
    ttl_s: int | None = declared(
        "ttlSecondsAfterFinished", integer("Seconds after the end until ttlPolicy is carried out. Default: never.")
    )
    ttl_policy: TtlPolicy = declared(
        "ttlPolicy",
        choice(
            "What is deleted at that time: pods, service and config map, or the job itself.",
            *get_args(TtlPolicy),
            default="DeletePods",
        ),
    )
    active_deadline_s: int | None = declared(
        "activeDeadlineSeconds", integer("Seconds that the job may run in total. Default: no limit.", ge=1)
    )
    scheduling_timeout_s: int | None = declared(
        "schedulingTimeoutSeconds",
        integer("Seconds that the job may wait in its queue and for nodes. Default: no limit.", ge=1),
    )
    startup_deadline_s: int = declared(
        "startupDeadlineSeconds",
        integer(
            "Seconds that a scheduled pod may take to start (image, volume, sandbox, init containers). "
            "spec.initializers do not count.",
            ge=1,
            default=1200,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The response to particular failures; the first rule that matches decides."""

    action: RuleAction = declared(
        "action",
        choice(
            "FailJob ends the job, Restart counts toward maxRestarts, RestartIgnoreLimit does not.",
            *get_args(RuleAction),
        ),
    )
    exit_codes: tuple[int, ...] = declared("onExitCodes", array("Exit codes.", integer("An exit code.", ge=1, le=255)))
    reasons: tuple[str, ...] = declared(
        "onReasons", array("Reasons as in status.lastFailure.reason.", text("A reason."))
    )


@dataclass(frozen=True, kw_only=True)
class NodeExclusion:
    """When the pods of later attempts are kept away from a node, and for how long."""

    after_failures: int = declared(
        "afterFailures",
        integer(
            "Failures on a node after which it is excluded: those that count toward maxRestarts, except OOMKilled; "
            "NotStartedInPlace; and the loss of the node.",
            ge=1,
            le=100,
            default=2,
        ),
    )
    max_nodes: int = declared(
        "maxNodes",
        integer("Most nodes excluded at a time; of more, those that failed last.", ge=1, le=16, default=4),
    )
    forget_after_s: int = declared(
        "forgetAfterSeconds",
        integer("Seconds after its last failure until a node is used again.", ge=60, le=31_536_000, default=86_400),
    )


@dataclass(frozen=True, kw_only=True)
class FailurePolicy:
    """How often and how soon a failed gang is restarted."""

    max_restarts: int = declared(
        "maxRestarts", integer("Restarts after failures; disruptions are not counted.", le=1000, default=3)
    )
    reset_after_progress: bool = declared(
        "resetAfterProgress",
        boolean("Resets the count once a newer checkpoint has been written, to the volume or to memory.", default=True),
    )
    backoff_initial_s: int = declared(
        "backoffSeconds.initial", integer("Seconds before the first restart.", le=86400, default=10)
    )
    backoff_max_s: int = declared("backoffSeconds.max", integer("Longest delay in seconds.", le=86400, default=600))
    rules: tuple[Rule, ...] = declared(
        "rules",
        array(
            "Rules for particular failures, tried in order.",
            record_of(
                Rule,
                "Matches if each list that it gives contains the failure's value; the first match decides.",
                required=("action",),
            ),
            max_items=32,
        ),
        of=Rule,
    )
    hang_timeout_s: int = declared(
        "hangTimeoutSeconds",
        integer(
            "Seconds without a heartbeat after which the gang is restarted; 0 disables this.",
            default=DEFAULT_HANG_TIMEOUT_S,
        ),
    )
    node_exclusion: NodeExclusion | None = declared(
        "nodeExclusion",
        record_of(
            NodeExclusion,
            "Keeps the pods of later attempts away from nodes on which the job failed repeatedly, by required node "
            "affinity; {} turns it on. status.failedNodes lists the nodes.",
        ),
        of=NodeExclusion,
    )
    in_place_restart: bool = declared(
        "inPlaceRestart",
        boolean(
            "Starts failed or hung ranks again in their living pods where that can work, else the whole gang again. "
            "Takes effect where pods report their progress.",
            default=True,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Elastic:
    """The bounds within which a running job may be resized."""

    min_nodes: int = declared("minNodes", integer("Fewest nodes.", ge=1, le=10_000))
    max_nodes: int = declared("maxNodes", integer("Most nodes.", ge=1, le=10_000))
