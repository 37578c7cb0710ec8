"""Reads a PyTorchJob or TrainJob of Kubeflow: the command that it runs, and its pods."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Object = Mapping[str, Any]
KINDS = ("PyTorchJob", "TrainJob")
SHELLS = ("sh", "bash", "/bin/sh", "/bin/bash")
POD_FIELDS = ("nodeSelector", "tolerations", "affinity", "priorityClassName", "schedulerName", "serviceAccountName")


@dataclass(frozen=True, kw_only=True)
class Pods:
    """The part of a job besides its command, as plain Kubernetes fields. remarks: what has no counterpart."""

    name: str = ""
    namespace: str = ""
    num_nodes: int | None = None
    num_processes: int | None = None
    resources: Object = field(default_factory=dict)
    env: tuple[Object, ...] = ()
    env_from: tuple[Object, ...] = ()
    volumes: tuple[Object, ...] = ()
    volume_mounts: tuple[Object, ...] = ()
    pod_spec: Object = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def read(manifest: Object) -> tuple[str, Pods]:
    """(the command as a script, the pods) of a manifest of one of KINDS."""
    return _pytorch_job(manifest) if manifest["kind"] == "PyTorchJob" else _train_job(manifest)


def _pytorch_job(manifest: Object) -> tuple[str, Pods]:
    spec = manifest.get("spec") or {}
    roles = spec.get("pytorchReplicaSpecs") or {}
    role = roles.get("Master") or roles.get("Worker") or {}
    pod = ((role.get("template") or {}).get("spec")) or {}
    container = _trainer(pod.get("containers") or [{}], "pytorch")
    metadata = manifest.get("metadata") or {}
    pods = Pods(
        name=metadata.get("name", ""),
        namespace=metadata.get("namespace", ""),
        num_nodes=sum(int((each or {}).get("replicas", 1)) for each in roles.values()) or None,
        num_processes=_number(spec.get("nprocPerNode")),
        resources=container.get("resources") or {},
        env=tuple(container.get("env") or ()),
        env_from=tuple(container.get("envFrom") or ()),
        volumes=tuple(pod.get("volumes") or ()),
        volume_mounts=tuple(container.get("volumeMounts") or ()),
        pod_spec={name: pod[name] for name in POD_FIELDS if name in pod},
        remarks=_image(container),
    )
    return _script(container), pods


def _train_job(manifest: Object) -> tuple[str, Pods]:
    spec = manifest.get("spec") or {}
    trainer = spec.get("trainer") or {}
    pod = _overrides(spec.get("podTemplateOverrides") or spec.get("podSpecOverrides") or ())
    container = _trainer(pod.get("containers") or [{}], "node")
    metadata = manifest.get("metadata") or {}
    runtime = (spec.get("runtimeRef") or {}).get("name", "")
    hidden = (f"what the training runtime {runtime} adds (image, volumes) is not in this manifest",) if runtime else ()
    pods = Pods(
        name=metadata.get("name", ""),
        namespace=metadata.get("namespace", ""),
        num_nodes=_number(trainer.get("numNodes")),
        num_processes=_number(trainer.get("numProcPerNode")),
        resources=trainer.get("resourcesPerNode") or {},
        env=(*(trainer.get("env") or ()), *(container.get("env") or ())),
        volumes=tuple(pod.get("volumes") or ()),
        volume_mounts=tuple(container.get("volumeMounts") or ()),
        pod_spec={name: pod[name] for name in POD_FIELDS if name in pod},
        remarks=(*_image(trainer), *hidden),
    )
    return _script(trainer), pods


def _overrides(overrides: Sequence[Object]) -> Object:
    """The pod fields of the overrides of the trainer's pods; later ones win."""
    merged: dict[str, Any] = {}
    for override in overrides:
        merged |= override.get("spec") or override
    return merged


def _trainer(containers: Sequence[Object], name: str) -> Object:
    return next((each for each in containers if each.get("name") == name), containers[0])


def _script(container: Object) -> str:
    words = [str(word) for word in (*(container.get("command") or ()), *(container.get("args") or ()))]
    if len(words) > 2 and words[0] in SHELLS and words[1].startswith("-") and "c" in words[1]:
        return words[2]
    return shlex.join(words)


def _image(container: Object) -> tuple[str, ...]:
    image = container.get("image")
    return (f"image {image}: the trainer has its own image",) if image else ()


def _number(value: object) -> int | None:
    return int(str(value)) if str(value).isdigit() and str(value) != "0" else None
