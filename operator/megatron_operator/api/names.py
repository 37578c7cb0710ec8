"""Every name that the operator shares with a cluster: API group, labels, annotations, conditions and reasons.

Also how names of child objects are derived from job and attempt. No behavior beyond naming.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, get_args

GROUP: Final = "megatrontrain.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "MegatronTrainJob"
LIST_KIND: Final = "MegatronTrainJobList"
PLURAL: Final = "megatrontrainjobs"
SINGULAR: Final = "megatrontrainjob"
SHORT_NAMES: Final = ("mtj", "mtjob")
CATEGORIES: Final = ("all", "training")

MANAGER: Final = f"{GROUP}/operator"
MULTIKUEUE_MANAGER: Final = "kueue.x-k8s.io/multikueue"
FIELD_MANAGER: Final = "megatron-train-operator"

CONTAINER: Final = "trainer"
LAUNCHER: Final = ("python", "-m", "megatron_trainer")  # how its command begins, unless the job has one of its own
MASTER: Final = "master"
WORKER: Final = "worker"
SPARE: Final = "spare"
Role = Literal["master", "worker", "spare"]

LABEL_JOB_NAME: Final = f"{GROUP}/job-name"
LABEL_REPLICA_TYPE: Final = f"{GROUP}/replica-type"
LABEL_REPLICA_INDEX: Final = f"{GROUP}/replica-index"
LABEL_RESTART_ATTEMPT: Final = f"{GROUP}/restart-attempt"
ANNOTATION_NUM_NODES: Final = f"{GROUP}/num-nodes"
ANNOTATION_KEPT_FROM: Final = f"{GROUP}/kept-from-nodes"
ANNOTATION_ARGS_HASH: Final = f"{GROUP}/args-hash"
ANNOTATION_DEFAULT_CONTAINER: Final = "kubectl.kubernetes.io/default-container"
ANNOTATION_MULTUS: Final = "k8s.v1.cni.cncf.io/networks"

KUEUE_PREFIX: Final = "kueue.x-k8s.io/"
KUEUE_QUEUE: Final = "kueue.x-k8s.io/queue-name"
KUEUE_PRIORITY: Final = "kueue.x-k8s.io/priority-class"
KUEUE_GROUP_NAME: Final = "kueue.x-k8s.io/pod-group-name"
KUEUE_GROUP_TOTAL: Final = "kueue.x-k8s.io/pod-group-total-count"
KUEUE_RETRIABLE: Final = "kueue.x-k8s.io/retriable-in-group"
KUEUE_REQUIRED_TOPOLOGY: Final = "kueue.x-k8s.io/podset-required-topology"
KUEUE_PREFERRED_TOPOLOGY: Final = "kueue.x-k8s.io/podset-preferred-topology"
KUEUE_UNCONSTRAINED_TOPOLOGY: Final = "kueue.x-k8s.io/podset-unconstrained-topology"
KUEUE_POD_SET_GROUP: Final = "kueue.x-k8s.io/podset-group-name"
KUEUE_GANG: Final = "gang"
KUEUE_MANAGED: Final = "kueue.x-k8s.io/managed"
KUEUE_JOB_UID: Final = "kueue.x-k8s.io/job-uid"
KUEUE_POD_SET: Final = "kueue.x-k8s.io/podset"
KUEUE_WORKLOAD: Final = "kueue.x-k8s.io/workload"
KUEUE_TOPOLOGY_GATE: Final = "kueue.x-k8s.io/topology"

# Prefixes of labels and annotations that are never copied from a job to its pods: the operator's, and those about the
# job itself.
NEVER_COPIED: Final = (f"{GROUP}/", "app.kubernetes.io/", KUEUE_PREFIX, "kubectl.kubernetes.io/")

VOLCANO_GROUP_NAME: Final = "scheduling.k8s.io/group-name"
VOLCANO_QUEUE: Final = "scheduling.volcano.sh/queue-name"
VOLCANO_TASK: Final = "volcano.sh/task-spec"
COSCHEDULING_GROUP: Final = "scheduling.x-k8s.io/pod-group"

# Condition types (metav1.Condition). RECONCILING and STALLED follow kstatus: present only while True.
ADMITTED: Final = "Admitted"
PODS_READY: Final = "PodsReady"
RUNNING: Final = "Running"
SUSPENDED: Final = "Suspended"
RESTARTING: Final = "Restarting"
SUCCEEDED: Final = "Succeeded"
COMPLETE: Final = "Complete"  # the same as Succeeded, under the name that Job has for it
FAILED: Final = "Failed"
RECONCILING: Final = "Reconciling"
STALLED: Final = "Stalled"
SLOW_RANK: Final = "SlowRank"  # present only while True
HAS_WARNINGS: Final = "HasWarnings"  # present only while True
SPEC_WARNINGS: Final = "SpecWarnings"
FAR_ABOVE_MEDIAN: Final = "FarAboveMedian"

# Reasons of Admitted
NOT_QUEUED: Final = "NotQueued"
WAITING_FOR_QUOTA: Final = "WaitingForQuota"
SCHEDULING_GATED: Final = "SchedulingGated"
QUOTA_RESERVED: Final = "QuotaReserved"
GANG_UNSCHEDULABLE: Final = "GangUnschedulable"
KUEUE_EVICTED: Final = "KueueEvicted"
# Reasons of PodsReady and Running
PODS_CREATING: Final = "PodsCreating"
PODS_PENDING: Final = "PodsPending"
ALL_PODS_READY: Final = "AllPodsReady"
ALL_PODS_RUNNING: Final = "AllPodsRunning"
JOB_FINISHED: Final = "JobFinished"
JOB_SUSPENDED: Final = "JobSuspended"
# Reasons of Suspended
USER_REQUESTED: Final = "UserRequested"
RESUMED: Final = "Resumed"
# Reasons of Restarting
POD_FAILED: Final = "PodFailed"
PREEMPTED: Final = "Preempted"
NODE_LOST: Final = "NodeLost"
HUNG: Final = "Hung"
RESIZED: Final = "Resized"
NODES_USED_AGAIN: Final = "NodesUsedAgain"
RESTARTED_IN_PLACE: Final = "RestartedInPlace"
NOT_STARTED_IN_PLACE: Final = "NotStartedInPlace"
GANG_RUNNING: Final = "GangRunning"
# Reasons of Succeeded and Failed
MASTER_SUCCEEDED: Final = "MasterSucceeded"
ALL_SUCCEEDED: Final = "AllSucceeded"
INVALID_SPEC: Final = "InvalidSpec"
MAX_RESTARTS_EXCEEDED: Final = "MaxRestartsExceeded"
NON_RETRYABLE_EXIT: Final = "NonRetryableExit"
DEADLINE_EXCEEDED: Final = "DeadlineExceeded"
STARTUP_FAILED: Final = "StartupFailed"
SCHEDULING_TIMEOUT: Final = "SchedulingTimeout"
OOM_KILLED: Final = "OOMKilled"
OUT_OF_DEVICE_MEMORY: Final = "OutOfDeviceMemory"
FAILURE_POLICY: Final = "FailurePolicy"
# Reasons of Stalled
JOB_FAILED: Final = "JobFailed"
QUOTA_EXCEEDED: Final = "QuotaExceeded"
REFUSED: Final = "Refused"
NAME_TAKEN: Final = "NameTaken"
INVALID_OBJECT: Final = "InvalidObject"
POD_TERMINATING: Final = "PodTerminating"
GANG_SCHEDULER_MISSING: Final = "GangSchedulerMissing"
KUEUE_MISSING: Final = "KueueMissing"
PRIORITY_CLASS_MISSING: Final = "PriorityClassMissing"

MAX_JOB_NAME_LENGTH: Final = 45  # pod names are derived from it
JOB_NAME_PATTERN: Final = "^[a-z]([-a-z0-9]*[a-z0-9])?$"  # a Service has it
POD_SUFFIX: Final = re.compile(
    r"-a(?P<attempt>0|[1-9][0-9]{0,8})-(?P<role>master|worker|spare)-(?P<index>0|[1-9][0-9]{0,8})"
)


@lru_cache(maxsize=64)
def replica_names(job_name: str, attempt: int, num_nodes: int) -> tuple[str, ...]:
    """Pod names of one attempt in node-rank order: the master, then the workers."""
    return tuple(pod_name(job_name, attempt, rank) for rank in range(num_nodes))


def pod_name(job_name: str, attempt: int, node_rank: int) -> str:
    """Name and hostname of the pod with this node rank; rank 0 is the master, rank i the worker i - 1."""
    if node_rank == 0:
        return f"{job_name}-a{attempt}-{MASTER}-0"
    return f"{job_name}-a{attempt}-{WORKER}-{node_rank - 1}"


def spare_name(job_name: str, attempt: int, index: int) -> str:
    """Name of the pod that holds a node for the gang of this attempt."""
    return f"{job_name}-a{attempt}-{SPARE}-{index}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A pod's position in a job, as its name encodes it."""

    attempt: int
    role: Role
    index: int


def place_of(name: str, job_name: str) -> Place | None:
    """The position of the pod with this name, None if no pod of this job has such a name."""
    match = POD_SUFFIX.fullmatch(name.removeprefix(job_name))
    if not name.startswith(job_name) or match is None or (match["role"] == MASTER and match["index"] != "0"):
        return None
    role: Role = next(each for each in get_args(Role) if each == match["role"])
    return Place(attempt=int(match["attempt"]), role=role, index=int(match["index"]))


def place_labels(job_name: str, place: Place) -> dict[str, str]:
    """Labels by which watches, services and people select the pod at this position.

    A spare has none of an attempt: service and autoscaler select the pods of the gang by it.
    """
    return {
        LABEL_JOB_NAME: job_name,
        LABEL_REPLICA_TYPE: place.role,
        LABEL_REPLICA_INDEX: str(place.index),
        **({} if place.role == SPARE else {LABEL_RESTART_ATTEMPT: str(place.attempt)}),
    }


def config_map_name(job_name: str, attempt: int) -> str:
    """Name of the immutable ConfigMap with the trainer's arguments of this attempt."""
    return f"{job_name}-a{attempt}-args"


def group_name(job_name: str, attempt: int) -> str:
    """Name of the PodGroup, or of the Kueue pod group, of this attempt."""
    return f"{job_name}-a{attempt}"


def claim_name(job_name: str) -> str:
    """Name of the checkpoint claim that the operator creates from spec.checkpoint.pvc.template."""
    return f"{job_name}-checkpoint"


def service_name(job_name: str) -> str:
    """Name of the headless service through which the pods of a job find their master."""
    return job_name


def selector(job_name: str, attempt: int) -> dict[str, str]:
    """Labels that select exactly the pods of one attempt's gang."""
    return {LABEL_JOB_NAME: job_name, LABEL_RESTART_ATTEMPT: str(attempt)}


def master_selector(job_name: str, attempt: int) -> dict[str, str]:
    """Labels that select the master of one attempt alone."""
    return {**selector(job_name, attempt), LABEL_REPLICA_TYPE: MASTER}


def selector_text(job_name: str, attempt: int) -> str:
    """The same in kubectl's syntax, for status.selector."""
    return ",".join(f"{key}={value}" for key, value in selector(job_name, attempt).items())
