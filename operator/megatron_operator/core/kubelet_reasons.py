"""Reasons with which the kubelets of Kubernetes 1.30 to 1.37 reject or evict a pod. A table."""

from __future__ import annotations

OUT_OF = "OutOf"  # OutOfcpu, OutOfmemory, OutOfpods, OutOfnvidia.com/gpu ...
OOM_KILLED = "OOMKilled"

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
        "Evicted",
        "NodeLost",
        "NodeShutdown",
        "Preempting",
        "Shutdown",
        "Terminated",
    }
)


def is_admission(reason: str) -> bool:
    """Whether the kubelet rejected or evicted the pod through no fault of the program."""
    return reason in REFUSED or reason in DROPPED or reason.startswith(OUT_OF)


def is_kubelets(reason: str) -> bool:
    """Whether only a kubelet may report it: a program that claims it is not believed."""
    return is_admission(reason) or reason == OOM_KILLED
