"""Reasons with which Kubernetes 1.30 to 1.37 rejects, evicts or deletes a pod. A table.

Of a DisruptionTarget condition there are PreemptionByScheduler, EvictionByEvictionAPI, TerminationByKubelet, and those
below of a pod whose node is gone or may be.
"""

from __future__ import annotations

import re

OUT_OF = "OutOf"  # OutOfcpu, OutOfmemory, OutOfpods, OutOfnvidia.com/gpu ...
OOM_KILLED = "OOMKilled"
EVICTED = "Evicted"
OWN_LIMIT = re.compile(
    r"Usage of EmptyDir volume .* exceeds the limit|Container .* exceeded its local ephemeral storage limit"
    r"|Pod ephemeral local storage usage exceeds"
)

# Rejected at admission: the pod no longer fits the node, or the node cannot run such a pod.
REFUSED = frozenset(
    {
        "AppArmor",
        "EmptyPodSharedPoolError",
        "InitContainerRestartPolicyForbidden",
        "InvalidNodeInfo",
        "NodeAffinity",
        "NodeName",
        "NodePorts",
        "NodeUnschedulable",
        "PodFeatureUnsupported",
        "PodLevelResourcesNotSupported",
        "PodOSNotSupported",
        "PodOSSelectorNodeLabelDoesNotMatch",
        "SMTAlignmentError",
        "SupplementalGroupsPolicyNotSupported",
        "SysctlForbidden",
        "TaintToleration",
        "TopologyAffinityError",
        "UnexpectedAdmissionError",
        "UnexpectedPredicateFailureType",
        "UnknownReason",
        "VolumeAttachmentLimitExceeded",
    }
)
# Terminated while running: pressure, shutdown, room for a critical pod, or a node that lost track of it.
DROPPED = frozenset(
    {
        "ContainerStatusUnknown",
        EVICTED,
        "NodeLost",
        "NodeShutdown",
        "Preempting",
        "Shutdown",
        "Terminated",
    }
)

# The pod's node no longer exists, or has not been heard of for a long time.
NODE_IS_GONE = frozenset({"DeletionByPodGC", "NodeLost"})
# The node has a taint NoExecute: that of a node which is not ready or unreachable, or one that somebody has set.
TAINTED = "DeletionByTaintManager"


def is_admission(reason: str) -> bool:
    """Whether the kubelet rejected or evicted the pod through no fault of the program."""
    return reason in REFUSED or reason in DROPPED or reason.startswith(OUT_OF)


def is_own_limit(reason: str, message: str) -> bool:
    """Whether the kubelet evicted the pod because it used more local storage (or /dev/shm) than its own limit.

    Any node would do so; a node that is low on something says that instead.
    """
    return reason == EVICTED and OWN_LIMIT.match(message) is not None


def is_kubelets(reason: str) -> bool:
    """Whether only a kubelet may report it: a program that claims it is not believed."""
    return is_admission(reason) or reason == OOM_KILLED
