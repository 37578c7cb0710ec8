"""The API resources that the operator touches, and their URL paths. A table; no requests."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_operator.api import names


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One resource of the API."""

    group: str
    version: str
    kind: str
    plural: str

    @property
    def api_version(self) -> str:
        """As manifests write it: "v1", "scheduling.k8s.io/v1beta1"."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        """Path of the group and version, for discovery."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Path of the collection, of one object, or of a subresource. Namespace None: all, or cluster-scoped."""
        scope = [f"namespaces/{namespace}"] if namespace else []
        return "/".join([self.root, *scope, self.plural, *filter(None, (name, subresource))])


VERSION = Resource(group="", version="v1", kind="Version", plural="version")
POD = Resource(group="", version="v1", kind="Pod", plural="pods")
SERVICE = Resource(group="", version="v1", kind="Service", plural="services")
CONFIG_MAP = Resource(group="", version="v1", kind="ConfigMap", plural="configmaps")
CLAIM = Resource(group="", version="v1", kind="PersistentVolumeClaim", plural="persistentvolumeclaims")
EVENT = Resource(group="", version="v1", kind="Event", plural="events")
NODE = Resource(group="", version="v1", kind="Node", plural="nodes")
LEASE = Resource(group="coordination.k8s.io", version="v1", kind="Lease", plural="leases")
TOKEN_REVIEW = Resource(group="authentication.k8s.io", version="v1", kind="TokenReview", plural="tokenreviews")
JOB = Resource(group=names.GROUP, version=names.VERSION, kind=names.KIND, plural=names.PLURAL)
WORKLOAD = Resource(group="kueue.x-k8s.io", version="v1beta2", kind="Workload", plural="workloads")
RESOURCE_FLAVOR = Resource(group="kueue.x-k8s.io", version="v1beta2", kind="ResourceFlavor", plural="resourceflavors")
PRIORITY_CLASSES = {
    "WorkloadPriorityClass": Resource(
        group="kueue.x-k8s.io", version="v1beta2", kind="WorkloadPriorityClass", plural="workloadpriorityclasses"
    ),
    "PriorityClass": Resource(group="scheduling.k8s.io", version="v1", kind="PriorityClass", plural="priorityclasses"),
}
POD_GROUPS = {
    "Volcano": Resource(group="scheduling.volcano.sh", version="v1beta1", kind="PodGroup", plural="podgroups"),
    "Coscheduling": Resource(group="scheduling.x-k8s.io", version="v1alpha1", kind="PodGroup", plural="podgroups"),
    "Native": Resource(group="scheduling.k8s.io", version="v1beta1", kind="PodGroup", plural="podgroups"),
}
RESOURCES = {
    (resource.api_version, resource.kind): resource
    for resource in (POD, SERVICE, CONFIG_MAP, CLAIM, JOB, WORKLOAD, *POD_GROUPS.values())
}
