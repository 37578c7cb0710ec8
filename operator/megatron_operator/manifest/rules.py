"""Rules between the infrastructure fields of a manifest. One function per rule; none changes a field.

Each rule takes (metadata, spec with defaults) and yields violations; invalid fields have been removed before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from megatron_operator.api import names
from megatron_operator.api.schema import pod_template, structural
from megatron_operator.core.desired.quantity import amount
from megatron_operator.manifest import accelerators, mounts, variables
from megatron_operator.manifest.variables import SET_BY_OPERATOR, Variable
from megatron_trainjob.args.names import find_alias
from megatron_trainjob.args.tree import ARGUMENTS
from megatron_trainjob.violation import Violation

Object = Mapping[str, Any]
Rule = Callable[[Object, Object], Iterable[Violation]]

TEMPLATES = ("podTemplate", "masterTemplate", "workerTemplate")
# Fields by which the operator selects, names and terminates its pods.
RESERVED_POD_FIELDS = ("hostname", "subdomain", "restartPolicy", "schedulingGroup")
FIELDS_OF_SPEC = ("command", "args", "image", "resources")
# The pod ends with the trainer's container, whose termination message says why.
RESERVED_CONTAINER_FIELDS = ("restartPolicy", "restartPolicyRules", "terminationMessagePath")
OWN_VOLUME_PREFIX = "mtj-"
LEAST_MEMORY_BYTES = 2**20


def check(metadata: Object, spec: Object) -> Iterator[Violation]:
    """All violations of all rules."""
    for rule in RULES:
        yield from rule(metadata, spec)


def warnings(spec: Object, arguments: Object) -> Iterator[Violation]:
    """Warnings: allowed but rarely intended."""
    mounted = [spec["checkpoint"]["mountPath"], *(mount["mountPath"] for mount in spec.get("volumeMounts", ()))]
    save = str(arguments.get("save") or spec["checkpoint"]["mountPath"])
    if not any(mounts.is_below(save, mount) for mount in mounted):
        yield _warning("spec.args.save", save, "is not below a mounted volume; in a cluster it is lost with the pod")
    elif mounts.is_below(save, mounted[0]) and not spec["checkpoint"].get("pvc"):
        yield _warning("spec.checkpoint", None, "has no pvc; in a cluster checkpoints are lost with the pod")
    limits = (spec.get("resourcesPerNode") or {}).get("limits") or {}
    yield from (_warning(*each) for each in accelerators.uncounted(spec))
    if spec["failurePolicy"].get("nodeExclusion") is not None and spec["scheduling"].get("topology"):
        message = "is not known to whoever assigns scheduling.topology; pods sent to an excluded node wait"
        yield _warning("spec.failurePolicy.nodeExclusion", None, message)
    yield from _claims_for_one_node(spec)
    yield from (_warning(*each) for each in variables.unknown(_variables(spec)))
    if spec["checkpoint"].get("memory") and spec["checkpoint"]["resume"] == "Never":
        message = "is never read with checkpoint.resume Never; use Auto, or remove it"
        yield _warning("spec.checkpoint.memory", None, message)
    slices = sum(int(amount(str(count))) for name, count in limits.items() if name.startswith(accelerators.MIG_PREFIX))
    if slices > 1:
        message = "has MIG slices, between which NCCL has no peer-to-peer path; expect slow collectives"
        yield _warning("spec.resourcesPerNode", slices, message)
    if spec["network"]["hostNetwork"] or (spec["network"].get("rdma") or {}).get("ipcLock"):
        message = "needs a namespace with PodSecurity privileged for hostNetwork or ipcLock"
        yield _warning("spec.network", None, message)
    if (spec["network"].get("rdma") or {}).get("ipcLock") and not _runs_as_root(spec):
        message = (
            "has no effect on a user other than root, who loses added capabilities when the program starts; set "
            "podTemplate.spec.securityContext to {runAsUser: 0, runAsNonRoot: false}, or leave it out where the nodes "
            "do not limit locked memory (LimitMEMLOCK of the container runtime)"
        )
        yield _warning("spec.network.rdma.ipcLock", value=True, message=message)


def _runs_as_root(spec: Object) -> bool:
    """Whether the pod template says so, for the pod or for the trainer's container."""
    pod = _mapping(_mapping(spec.get("podTemplate")).get("spec"))
    owners = [pod, *(container for _, container in _trainers(spec, "podTemplate"))]
    return any(_mapping(owner.get("securityContext")).get("runAsUser") == 0 for owner in owners)


def _warning(path: str, value: object, message: str) -> Violation:
    return Violation(path=path, value=value, message=message, severity="warning")


def _claims_for_one_node(spec: Object) -> Iterator[Violation]:
    """A volume that only one node can mount keeps the pods on other nodes waiting."""
    template = (spec["checkpoint"].get("pvc") or {}).get("template") or {}
    modes = (template.get("spec") or {}).get("accessModes") or ()
    if spec["numNodes"] > 1 and modes and not {"ReadWriteMany", "ReadOnlyMany"} & {*modes}:
        place = "pod" if set(modes) == {"ReadWriteOncePod"} else "node"
        message = f"lets one {place} mount the volume, but there are {spec['numNodes']} nodes; use ReadWriteMany"
        yield _warning("spec.checkpoint.pvc.template.spec.accessModes", modes[0], message)


def _checkpoint_has_one_source(metadata: Object, spec: Object) -> Iterator[Violation]:
    claim = spec["checkpoint"].get("pvc") or {}
    if "claimName" in claim and "template" in claim:
        message = "claimName and template exclude each other; remove one of them"
        yield Violation(path="spec.checkpoint.pvc", value=claim["claimName"], message=message)


def _save_stays_on_its_volume(metadata: Object, spec: Object) -> Iterator[Violation]:
    sub_path = spec["checkpoint"]["subPath"]
    if ".." in sub_path.split("/") or sub_path.startswith("/"):
        message = "must be a relative path without '..'"
        yield Violation(path="spec.checkpoint.subPath", value=sub_path, message=message)


def _environment_is_ours(metadata: Object, spec: Object) -> Iterator[Violation]:
    """A manifest must not set what the operator sets, nor a variable of the trainer to what it cannot be."""
    yield from filter(None, map(variables.problem, _variables(spec)))


def _variables(spec: Object) -> list[Variable]:
    """Every variable that the manifest gives the trainer."""
    given = [(f"spec.env[{i}]", entry) for i, entry in enumerate(spec.get("env", ()))]
    for template in TEMPLATES:
        for path, container in _trainers(spec, template):
            given += [(f"{path}.env[{i}]", _mapping(entry)) for i, entry in enumerate(container.get("env") or ())]
    nccl = [(f"spec.network.ncclEnv.{name}", name, value) for name, value in spec["network"].get("ncclEnv", {}).items()]
    named = [
        Variable(name=str(entry.get("name")), value=entry.get("value"), name_path=f"{path}.name", path=f"{path}.value")
        for path, entry in given
    ]
    return [*named, *(Variable(name=name, value=value, name_path=path, path=path) for path, name, value in nccl)]


def _nccl_names(metadata: Object, spec: Object) -> Iterator[Violation]:
    for name in spec["network"].get("ncclEnv", {}):
        if not name.startswith(("NCCL_", "SHARP_", "UCX_")):
            message = "accepts only NCCL_, SHARP_ and UCX_ variables; set others under spec.env"
            yield Violation(path=f"spec.network.ncclEnv.{name}", value=name, message=message)


def _template_fields_are_known(metadata: Object, spec: Object) -> Iterator[Violation]:
    """The CRD does not check the role templates, so their shape is checked here."""
    for template in ("masterTemplate", "workerTemplate"):
        yield from structural.check(spec.get(template, {}), pod_template.overlay(), f"spec.{template}")


def _templates_keep_off_our_fields(metadata: Object, spec: Object) -> Iterator[Violation]:
    for template in TEMPLATES:
        overlay = spec.get(template, {})
        pod = _mapping(overlay.get("spec"))
        for field in RESERVED_POD_FIELDS:
            if field in pod:
                path = f"spec.{template}.spec.{field}"
                yield Violation(path=path, value=pod[field], message=SET_BY_OPERATOR)
        for path, container in _trainers(spec, template):
            for field in (*FIELDS_OF_SPEC, *RESERVED_CONTAINER_FIELDS):
                if field in container:
                    is_given = field in FIELDS_OF_SPEC
                    message = "of the trainer is set under spec; move it there" if is_given else SET_BY_OPERATOR
                    yield Violation(path=f"{path}.{field}", value=container[field], message=message)
        yield from _own_labels(f"spec.{template}.metadata", _mapping(overlay.get("metadata")))


def _own_labels(path: str, metadata: Object) -> Iterator[Violation]:
    for kind in ("labels", "annotations"):
        for key, value in _mapping(metadata.get(kind)).items():
            if str(key).startswith(f"{names.GROUP}/"):
                message = f"starts with {names.GROUP}/, which is reserved for the operator; choose another"
                yield Violation(path=f"{path}.{kind}.{key}", value=value, message=message)


def _volumes_are_known(metadata: Object, spec: Object) -> Iterator[Violation]:
    """Each mount refers to an existing volume, which is unique and not one of ours."""
    volumes = [volume.get("name") for volume in _volumes(spec)]
    for i, volume in enumerate(spec.get("volumes", ())):
        if volumes[:i].count(volume["name"]):
            yield Violation(path=f"spec.volumes[{i}].name", value=volume["name"], message="is used twice; rename one")
        if volume["name"].startswith(OWN_VOLUME_PREFIX):
            message = f"starts with {OWN_VOLUME_PREFIX}, which is reserved for the operator; choose another"
            yield Violation(path=f"spec.volumes[{i}].name", value=volume["name"], message=message)
    for i, mount in enumerate(spec.get("volumeMounts", ())):
        if mount["name"] not in volumes:
            known = f"known are {', '.join(map(str, volumes))}" if volumes else "spec.volumes is empty"
            message = f"refers to no volume; {known}"
            yield Violation(path=f"spec.volumeMounts[{i}].name", value=mount["name"], message=message)


def _mounts_hide_nothing(metadata: Object, spec: Object) -> Iterator[Violation]:
    trainers = (found for template in TEMPLATES for found in _trainers(spec, template))
    yield from mounts.check(spec, trainers, _volumes(spec))


def _initializers_can_run(metadata: Object, spec: Object) -> Iterator[Violation]:
    seen = {names.CONTAINER}
    mounted = [spec["checkpoint"]["mountPath"], *(mount["mountPath"] for mount in spec.get("volumeMounts", ()))]
    for i, each in enumerate(spec.get("initializers", ())):
        path = f"spec.initializers[{i}]"
        if each["name"] in seen:
            yield Violation(path=f"{path}.name", value=each["name"], message="is taken; choose another name")
        seen.add(each["name"])
        uri = each.get("storageUri", "")
        if not each.get("command") and not uri.startswith("hf://"):
            message = "without a command only hf:// sources can be fetched; set a command"
            yield Violation(path=f"{path}.storageUri", value=uri or None, message=message)
        if not any(mounts.is_below(each["targetPath"], mount) for mount in mounted):
            message = f"is not below a mounted volume ({', '.join(mounted)}); the download would be lost"
            yield Violation(path=f"{path}.targetPath", value=each["targetPath"], message=message)
        elif spec["numNodes"] > 1 and mounts.is_of_one_pod(each["targetPath"], spec, _volumes(spec)):
            message = "is on a volume that each pod has for itself, and the workers would wait forever for what the "
            message += "master downloads; use a claim with ReadWriteMany, as spec.checkpoint.pvc"
            yield Violation(path=f"{path}.targetPath", value=each["targetPath"], message=message)


def _scheduling_fits_the_gang(metadata: Object, spec: Object) -> Iterator[Violation]:
    scheduling = spec["scheduling"]
    for field, gangs in (
        ("queue", ("Volcano",)),
        ("scheduleTimeoutSeconds", ("Coscheduling",)),
        ("minMember", ("Volcano", "Coscheduling", "Native")),
    ):
        if field in scheduling and scheduling["gang"] not in gangs:
            message = f"needs scheduling.gang {' or '.join(gangs)}; set it or remove this"
            yield Violation(path=f"spec.scheduling.{field}", value=scheduling[field], message=message)
    if scheduling.get("minMember", 1) > spec["numNodes"]:
        message = f"must not exceed spec.numNodes ({spec['numNodes']})"
        yield Violation(path="spec.scheduling.minMember", value=scheduling["minMember"], message=message)
    if scheduling["gang"] == "Coscheduling" and "schedulerName" not in scheduling:
        message = "is required with gang Coscheduling: the name under which its scheduler runs"
        yield Violation(path="spec.scheduling.schedulerName", value=None, message=message)


def _topology_has_somebody_to_keep_it(metadata: Object, spec: Object) -> Iterator[Violation]:
    topology, gang = spec["scheduling"].get("topology"), spec["scheduling"]["gang"]
    if topology is None:
        return
    path = "spec.scheduling.topology"
    has_queue = names.KUEUE_QUEUE in _mapping(metadata.get("labels"))
    if gang == "Volcano" and "highestTierAllowed" not in topology:
        yield Violation(path=f"{path}.highestTierAllowed", value=None, message="is required with gang Volcano")
    elif gang != "Volcano" and "key" not in topology:
        yield Violation(
            path=f"{path}.key", value=None, message="is required: the node label whose value the pods share"
        )
    if topology["exclusive"] and "key" not in topology and gang == "Volcano":
        yield Violation(path=f"{path}.key", value=None, message="is required with exclusive: the domain's node label")
    if gang not in ("Volcano", "Native") and not has_queue and not topology["exclusive"]:
        message = f"needs gang Volcano or Native, a Kueue queue (label {names.KUEUE_QUEUE}), or exclusive: true"
        yield Violation(path=path, value=topology.get("key"), message=message)
    if gang == "Native" and topology["mode"] == "Preferred":
        message = "native gangs support only Required; use it or remove the topology"
        yield Violation(path=f"{path}.mode", value="Preferred", message=message)


def _size_is_elastic(metadata: Object, spec: Object) -> Iterator[Violation]:
    """The number of nodes is within its bounds, and the pods of a resized gang can save and resume."""
    elastic = spec.get("elasticPolicy")
    if elastic is None or "minNodes" not in elastic or "maxNodes" not in elastic:
        return
    low, high = elastic["minNodes"], elastic["maxNodes"]
    if low > high:
        message = f"must not exceed maxNodes ({high})"
        yield Violation(path="spec.elasticPolicy.minNodes", value=low, message=message)
    elif not low <= spec["numNodes"] <= high:
        message = f"must be between elasticPolicy.minNodes and maxNodes ({low} to {high})"
        yield Violation(path="spec.numNodes", value=spec["numNodes"], message=message)
    if spec["checkpoint"]["resume"] == "Never":
        message = "conflicts with elasticPolicy, which continues from the checkpoint; use Auto or Required"
        yield Violation(path="spec.checkpoint.resume", value="Never", message=message)


def _copies_are_the_users(metadata: Object, spec: Object) -> Iterator[Violation]:
    for kind, wanted in (spec.get("copyToPods") or {}).items():
        for i, name in enumerate(wanted):
            if name.startswith(names.NEVER_COPIED):
                message = "is reserved and cannot be copied; remove it"
                yield Violation(path=f"spec.copyToPods.{kind}[{i}]", value=name, message=message)


def _rules_say_when(metadata: Object, spec: Object) -> Iterator[Violation]:
    for i, rule in enumerate(spec["failurePolicy"].get("rules", ())):
        if not rule.get("onExitCodes") and not rule.get("onReasons"):
            message = "needs onExitCodes or onReasons, or it would match every failure"
            yield Violation(path=f"spec.failurePolicy.rules[{i}]", value=rule["action"], message=message)


def _quantities_are_numbers(metadata: Object, spec: Object) -> Iterator[Violation]:
    for path, resources in _resources(spec):
        for kind in ("limits", "requests"):
            for name, value in _mapping(resources.get(kind)).items():
                try:
                    amount(str(value))
                except ValueError as problem:
                    yield Violation(path=f"{path}.{kind}.{name}", value=value, message=str(problem))


def _resources(spec: Object) -> Iterator[tuple[str, Object]]:
    """(path, resources) of the trainer and of each container of a template."""
    yield "spec.resourcesPerNode", _mapping(spec.get("resourcesPerNode"))
    for template in TEMPLATES:
        pod = _mapping(_mapping(spec.get(template)).get("spec"))
        for kind in ("initContainers", "containers"):
            for i, container in enumerate(pod.get(kind) or ()):
                path = f"spec.{template}.spec.{kind}[{i}].resources"
                yield path, _mapping(_mapping(container).get("resources"))


def _memory_holds_a_checkpoint(metadata: Object, spec: Object) -> Iterator[Violation]:
    memory = spec["checkpoint"].get("memory") or {}
    if "sizeLimit" in memory and amount(str(memory["sizeLimit"])) < LEAST_MEMORY_BYTES:
        message = "is too small for any checkpoint; give a quantity such as 64Gi (mtj plan shows what they need)"
        yield Violation(path="spec.checkpoint.memory.sizeLimit", value=memory["sizeLimit"], message=message)


def _extra_arguments_are_extra(metadata: Object, spec: Object) -> Iterator[Violation]:
    for name, value in spec.get("extraArgs", {}).items():
        if name in ARGUMENTS or find_alias(name, spec.get("task", "sft")):
            message = "is a known argument; move it to spec.args"
            yield Violation(path=f"spec.extraArgs.{name}", value=value, message=message)


RULES: tuple[Rule, ...] = (
    _checkpoint_has_one_source,
    _save_stays_on_its_volume,
    _environment_is_ours,
    _nccl_names,
    _template_fields_are_known,
    _templates_keep_off_our_fields,
    _volumes_are_known,
    _mounts_hide_nothing,
    _initializers_can_run,
    _scheduling_fits_the_gang,
    _topology_has_somebody_to_keep_it,
    _size_is_elastic,
    _copies_are_the_users,
    _rules_say_when,
    _quantities_are_numbers,
    _memory_holds_a_checkpoint,
    _extra_arguments_are_extra,
)


def _mapping(value: object) -> Object:
    return value if isinstance(value, Mapping) else {}


def _volumes(spec: Object) -> Iterator[Object]:
    """The volumes of the spec, then those of the templates."""
    yield from spec.get("volumes", ())
    for template in TEMPLATES:
        pod = _mapping(_mapping(spec.get(template)).get("spec"))
        yield from map(_mapping, pod.get("volumes") or ())


def _trainers(spec: Object, template: str) -> Iterator[tuple[str, Object]]:
    """(path, container) for each template entry of the trainer container."""
    pod = _mapping(_mapping(spec.get(template)).get("spec"))
    for i, container in enumerate(pod.get("containers") or ()):
        if _mapping(container).get("name") == names.CONTAINER:
            yield f"spec.{template}.spec.containers[{i}]", container
