"""Reasons by which kubelets of Kubernetes 1.30 to 1.37 say that they refused a pod or dropped it. A table."""

from __future__ import annotations

OUT_OF = "OutOf"  # OutOfcpu, OutOfmemory, OutOfpods, OutOfnvidia.com/gpu ...
OOM_KILLED = "OOMKilled"

# Refused at admission: node and pod did not fit any more when the pod came, or the node cannot run such a pod.
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
# Dropped while it ran: pressure, shutdown, room for a critical pod, or a node that lost track of it.
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
    """Whether the kubelet refused or dropped the pod through no fault of the program."""
    return reason in REFUSED or reason in DROPPED or reason.startswith(OUT_OF)


def is_kubelets(reason: str) -> bool:
    """Whether only a kubelet may say so: a program that claims it of itself is not believed."""
    return is_admission(reason) or reason == OOM_KILLED
