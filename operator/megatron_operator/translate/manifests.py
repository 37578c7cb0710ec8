"""Reads manifests of other operators: the command that they run, and its pods.

PyTorchJob and TrainJob of Kubeflow, MPIJob, JobSet, Volcano's Job, LeaderWorkerSet, RayJob, and the plain Job and Pod.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from megatron_operator.translate import policies
from megatron_trainjob.args import yaml_file

Object = Mapping[str, Any]
SHELLS = ("sh", "bash", "/bin/sh", "/bin/bash", "/usr/bin/bash")
POD_FIELDS = ("nodeSelector", "tolerations", "affinity", "priorityClassName", "schedulerName", "serviceAccountName") + (
    "imagePullSecrets",
    "topologySpreadConstraints",
    "runtimeClassName",
    "initContainers",
)
UNTOLD = frozenset(
    ("containers", "volumes", "restartPolicy", "terminationGracePeriodSeconds", "hostname", "subdomain", *POD_FIELDS)
    + ("metadata", "hostNetwork")
)
"""Fields of a pod that stand elsewhere or that the operator answers."""
CONTAINER_FIELDS = frozenset(
    ("name", "image", "imagePullPolicy", "command", "args", "env", "envFrom", "resources", "volumeMounts")
    + ("numNodes", "numProcPerNode", "resourcesPerNode")
)
RAY = "Ray starts the command in one of them; set numNodes if it starts others itself"
VARIABLE = re.compile(r"\$\((\w+)\)")
TRAINERS = ("pytorch", "trainer", "node", "mpi", "main", "worker", "master", "launcher")


@dataclass(frozen=True, kw_only=True)
class Pods:
    """The part of a job besides its command, as plain Kubernetes fields.

    policies: fields of the new spec. folder: where its command starts. remarks: what has no counterpart.
    """

    name: str = ""
    namespace: str = ""
    labels: Object = field(default_factory=dict)
    policies: Object = field(default_factory=dict)
    folder: str | None = None
    pod_metadata: Object = field(default_factory=dict)
    host_network: bool = False
    num_nodes: int | None = None
    num_processes: int | None = None
    resources: Object = field(default_factory=dict)
    env: tuple[Object, ...] = ()
    env_from: tuple[Object, ...] = ()
    volumes: tuple[Object, ...] = ()
    volume_mounts: tuple[Object, ...] = ()
    pod_spec: Object = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Found:
    """A command as a script, the arguments that it gets, files that config maps put into its pods, and the pods."""

    script: str
    pods: Pods
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Role:
    """Pods of one kind: how many, and their spec."""

    pod: Object
    count: int | None = None
    num_processes: int | None = None
    remarks: tuple[str, ...] = ()


def read(manifest: Object, others: Sequence[Object] = ()) -> Found:
    """The command and the pods of a manifest of one of KINDS; others: the objects beside it, such as a ConfigMap."""
    if manifest["kind"] == "TrainJob":
        return _train_job(manifest, others)
    roles = [role for role in KINDS[manifest["kind"]](manifest.get("spec") or {}) if role.pod.get("containers")]
    if not roles:
        return Found(script="", pods=Pods())
    first = roles[0]
    workers = roles[-1]
    container = _trainer(first.pod["containers"])
    of_workers = _trainer(workers.pod["containers"])
    # An MPIJob's launcher starts the command, its workers have the devices.
    is_mpi = manifest["kind"] == "MPIJob"
    counted = roles[1:] if is_mpi else roles
    pods = Pods(
        num_nodes=None if manifest["kind"] == "RayJob" else sum(role.count or 1 for role in counted) or None,
        num_processes=next((role.num_processes for role in roles if role.num_processes), None),
        resources=(of_workers if is_mpi else container).get("resources") or {},
        env=tuple(container.get("env") or ()),
        env_from=tuple(container.get("envFrom") or ()),
        volumes=tuple(workers.pod.get("volumes") or first.pod.get("volumes") or ()),
        volume_mounts=tuple(of_workers.get("volumeMounts") or container.get("volumeMounts") or ()),
        pod_spec={name: workers.pod[name] for name in POD_FIELDS if name in workers.pod},
        pod_metadata=_metadata(workers.pod),
        host_network=workers.pod.get("hostNetwork") is True,
        folder=_folder(container),
        remarks=(*_left(workers.pod, of_workers), *policies.remarks(manifest, ROLES), *first.remarks),
    )
    return Found(script=_script(container), pods=_named(pods, manifest), files=_files(first.pod, container, others))


def _pytorch_job(spec: Object) -> Iterator[_Role]:
    replicas = spec.get("pytorchReplicaSpecs") or {}
    for name in ("Master", "Worker"):
        if name in replicas:
            yield _replicas(replicas[name], _number(spec.get("nprocPerNode")))


def _mpi_job(spec: Object) -> Iterator[_Role]:
    replicas = spec.get("mpiReplicaSpecs") or {}
    for name in ("Launcher", "Worker"):
        if name in replicas:
            yield _replicas(replicas[name], _number(spec.get("slotsPerWorker")))


def _replicas(role: Object | None, num_processes: int | None) -> _Role:
    role = role or {}
    return _Role(pod=_pod(role.get("template")), count=int(role.get("replicas", 1)), num_processes=num_processes)


def _job(spec: Object) -> Iterator[_Role]:
    yield _Role(pod=_pod(spec.get("template")), count=_number(spec.get("completions") or spec.get("parallelism")))


def _job_set(spec: Object) -> Iterator[_Role]:
    for each in spec.get("replicatedJobs") or ():
        (role,) = _job((each.get("template") or {}).get("spec") or {})
        yield replace(role, count=(role.count or 1) * int(each.get("replicas", 1)))


def _volcano_job(spec: Object) -> Iterator[_Role]:
    for task in spec.get("tasks") or ():
        yield _Role(pod=_pod(task.get("template")), count=int(task.get("replicas", 1)))


def _any_job(spec: Object) -> Iterator[_Role]:
    yield from _volcano_job(spec) if "tasks" in spec else _job(spec)


def _leader_worker_set(spec: Object) -> Iterator[_Role]:
    template = spec.get("leaderWorkerTemplate") or {}
    pod = template.get("leaderTemplate") or template.get("workerTemplate")
    yield _Role(pod=_pod(pod), count=_number(template.get("size")))


def _ray_job(spec: Object) -> Iterator[_Role]:
    """A pod of the workers with GPUs, which runs the entrypoint: Ray starts it once, whatever the number of workers."""
    cluster = spec.get("rayClusterSpec") or {}
    groups = [*(cluster.get("workerGroupSpecs") or ()), cluster.get("headGroupSpec") or {}]
    known = [(group, pod) for group in groups if (pod := _pod(group.get("template"))).get("containers")]
    roles = known or [({}, {"containers": [{}]})]  # of a cluster that is there already
    with_gpus = (each for each in roles if "gpu" in str(_trainer(each[1]["containers"]).get("resources")))
    group, pod = next(with_gpus, roles[0])
    container, others = _trainer(pod["containers"]), pod["containers"][1:]
    runtime = _mapping(spec.get("runtimeEnvYAML"))
    env = [{"name": str(name), "value": str(value)} for name, value in _mapping(runtime.get("env_vars")).items()]
    own = {**container, "command": ["bash", "-c", str(spec.get("entrypoint") or "")], "args": []}
    own["env"] = [*(container.get("env") or ()), *env]
    left = ", ".join(name for name in runtime if name != "env_vars")
    yield _Role(
        pod={**pod, "containers": [own, *others]},
        remarks=(
            *((f"{group.get('replicas', 1)} pods like this one: {RAY}",) if known else ()),
            *((f"{left} of the runtime environment",) if left else ()),
        ),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    """An object, also one that is written as YAML text."""
    if isinstance(value, str):
        with suppress(yaml_file.YamlProblem):
            value = next(iter(yaml_file.parse_text(value)), None)
    return value if isinstance(value, Mapping) else {}


def _lone_pod(spec: Object) -> Iterator[_Role]:
    yield _Role(pod={name: value for name, value in spec.items() if name != "activeDeadlineSeconds"}, count=1)


def _pod(template: Object | None) -> Object:
    """The spec of a pod, with its metadata."""
    found = template or {}
    return {**(found.get("spec") or {}), **({"metadata": found["metadata"]} if found.get("metadata") else {})}


def _metadata(pod: Object) -> dict[str, Any]:
    """Labels and annotations of a pod."""
    metadata = pod.get("metadata") or {}
    return {name: metadata[name] for name in ("labels", "annotations") if metadata.get(name)}


def _folder(container: Object) -> str | None:
    """Where the command of a container starts."""
    folder = str(container.get("workingDir") or "")
    return folder.rstrip("/") if folder.startswith("/") and folder != "/" else None


def _train_job(manifest: Object, others: Sequence[Object]) -> Found:
    spec = manifest.get("spec") or {}
    trainer = spec.get("trainer") or {}
    pod = _overrides(spec.get("podTemplateOverrides") or spec.get("podSpecOverrides") or ())
    container = _trainer(pod.get("containers") or [{}])
    runtime = (spec.get("runtimeRef") or {}).get("name", "")
    hidden = (f"what the training runtime {runtime} adds (image, volumes) is not in this manifest",) if runtime else ()
    pods = Pods(
        num_nodes=_number(trainer.get("numNodes")),
        num_processes=_number(trainer.get("numProcPerNode")),
        resources=trainer.get("resourcesPerNode") or {},
        env=(*(trainer.get("env") or ()), *(container.get("env") or ())),
        volumes=tuple(pod.get("volumes") or ()),
        volume_mounts=tuple(container.get("volumeMounts") or ()),
        pod_spec={name: pod[name] for name in POD_FIELDS if name in pod},
        host_network=pod.get("hostNetwork") is True,
        folder=_folder({**container, **trainer}),
        remarks=(*_left(pod, {**container, **trainer}), *policies.remarks(manifest, ROLES_OF_TRAIN_JOB), *hidden),
    )
    return Found(script=_script(trainer), pods=_named(pods, manifest), files=_files(pod, container, others))


def _overrides(overrides: Sequence[Object]) -> Object:
    """The pod fields of the overrides of the trainer's pods; later ones win."""
    merged: dict[str, Any] = {}
    for override in overrides:
        merged |= override.get("spec") or override
    return merged


def _named(pods: Pods, manifest: Object) -> Pods:
    metadata = manifest.get("metadata") or {}
    return replace(
        pods,
        name=metadata.get("name", ""),
        namespace=metadata.get("namespace", ""),
        labels=policies.labels(manifest),
        policies=policies.fields(manifest),
    )


def _trainer(containers: Sequence[Object]) -> Object:
    return next((each for each in containers if each.get("name") in TRAINERS), containers[0])


def _script(container: Object) -> str:
    """The command with its arguments; those behind the script of a shell are its `$1`, `$2`."""
    env = {entry.get("name"): str(entry["value"]) for entry in container.get("env") or () if "value" in entry}
    given = [str(word) for word in (*(container.get("command") or ()), *(container.get("args") or ()))]
    words = [VARIABLE.sub(lambda found: env.get(found[1], found[0]), word) for word in given]
    for index, word in enumerate(words[1:3], 1):
        if words[0] in SHELLS and word.startswith("-") and word.endswith("c") and len(words) > index + 1:
            own = words[index + 3 :]
            return f"set -- {shlex.join(own)}\n{words[index + 1]}" if own else words[index + 1]
    return shlex.join(words)


def _files(pod: Object, container: Object, others: Sequence[Object]) -> dict[str, str]:
    """Path -> text of the config maps that are mounted into the container."""
    texts = [each for each in others if each.get("kind") == "ConfigMap"]
    maps = {(each.get("metadata") or {}).get("name"): each.get("data") or {} for each in texts}
    sources = {volume.get("name"): volume.get("configMap") or {} for volume in pod.get("volumes") or ()}
    found = {}
    for mount in container.get("volumeMounts") or ():
        source = sources.get(mount.get("name")) or {}
        paths = {item.get("key"): item.get("path") for item in source.get("items") or ()}
        folder, part = mount["mountPath"].rstrip("/"), mount.get("subPath")
        for key, text in maps.get(source.get("name"), {}).items():
            name = paths.get(key, key)
            if part in (None, name):
                found[folder if part else f"{folder}/{name}"] = text
    return found


def _left(pod: Object, container: Object) -> tuple[str, ...]:
    """Fields of the pod without a counterpart in the new manifest."""
    image = container.get("image")
    others = [str(each.get("name")) for each in (pod.get("containers") or ())[1:]]
    is_of_host = pod.get("hostNetwork") is True and pod.get("dnsPolicy") == "ClusterFirstWithHostNet"
    fields = [name for name in pod if name not in UNTOLD and not (name == "dnsPolicy" and is_of_host)]
    carried = CONTAINER_FIELDS | ({"workingDir"} if _folder(container) else set())
    own = [name for name in container if name not in carried]
    return (
        *((f"image {image}: the trainer has its own image",) if image else ()),
        *((f"containers {', '.join(others)}: add them to podTemplate.spec",) if others else ()),
        *((f"{', '.join(fields)} of the pod: add them to podTemplate.spec if they matter",) if fields else ()),
        *((f"{', '.join(own)} of the container",) if own else ()),
    )


def _number(value: object) -> int | None:
    return int(str(value)) if str(value).isdigit() and str(value) != "0" else None


ROLES = frozenset(
    ("pytorchReplicaSpecs", "mpiReplicaSpecs", "nprocPerNode", "slotsPerWorker", "template", "completionMode")
    + ("replicatedJobs", "tasks", "leaderWorkerTemplate", "containers", "volumes", "restartPolicy")
    + ("completions", "parallelism", "rayClusterSpec", "entrypoint", "runtimeEnvYAML", *POD_FIELDS)
)
ROLES_OF_TRAIN_JOB = frozenset(("trainer", "runtimeRef", "podTemplateOverrides", "podSpecOverrides"))
KINDS: Mapping[str, Callable[[Object], Iterator[_Role]]] = {
    "PyTorchJob": _pytorch_job,
    "TrainJob": _lone_pod,
    "MPIJob": _mpi_job,
    "JobSet": _job_set,
    "Job": _any_job,
    "LeaderWorkerSet": _leader_worker_set,
    "RayJob": _ray_job,
    "Pod": _lone_pod,
}
