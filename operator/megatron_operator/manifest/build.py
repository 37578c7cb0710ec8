"""Builds the Job value from a valid manifest with defaults filled in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from megatron_operator.api.schema.declared import read
from megatron_operator.core.desired.quantity import total
from megatron_operator.core.job import Job
from megatron_operator.manifest import rules
from megatron_trainjob.args.parse import Accepted
from megatron_trainjob.environment import DEFAULT_MASTER_PORT

Object = Mapping[str, Any]
# Between the ports of node agents and Kubernetes' own NodePorts (30000) and ephemeral ports (32768).
HOST_PORTS = range(20000, 30000)


def build(manifest: Object, spec: Object, arguments: Accepted, *, nproc_per_node: int, default_image: str) -> Job:
    """The job of a valid manifest."""
    metadata = manifest["metadata"]
    known = {name: getattr(arguments.args, name) for name in sorted(arguments.given)}
    image = spec.get("image") or default_image
    resolved = {
        **spec,
        "image": image,
        "nprocPerNode": nproc_per_node,
        "checkpoint": _checkpoint(spec["checkpoint"], metadata["name"]),
        "network": _network(spec["network"], metadata.get("uid") or metadata["name"]),
        "initializers": [_initializer(each, image) for each in spec.get("initializers", ())],
        "resourcesPerNode": _resources(spec.get("resourcesPerNode") or {}, spec["checkpoint"].get("memory")),
        "scheduling": {**spec["scheduling"], "minMember": spec["scheduling"].get("minMember") or spec["numNodes"]},
    }
    return read(
        Job,
        resolved,
        name=metadata["name"],
        namespace=metadata.get("namespace") or "default",
        uid=metadata.get("uid") or "",
        generation=metadata.get("generation") or 0,
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        args=arguments.args,
        given_args={**spec.get("extraArgs", {}), **known},
        warnings=(*arguments.warnings, *rules.warnings(spec, known)),
    )


def _host_port(uid: str) -> int:
    """A port for this job alone: on the node's network two jobs with the same port would clash."""
    return HOST_PORTS[int(hashlib.sha256(uid.encode()).hexdigest(), 16) % len(HOST_PORTS)]


def download_command(storage_uri: str, target_path: str) -> tuple[str, ...]:
    """The command that fetches an hf:// source with the client in the trainer's image."""
    repository = storage_uri.removeprefix("hf://")
    kind: tuple[str, ...] = ()
    if repository.startswith("datasets/"):
        repository, kind = repository.removeprefix("datasets/"), ("--repo-type", "dataset")
    return ("hf", "download", repository, *kind, "--local-dir", target_path)


def _checkpoint(given: Object, job_name: str) -> Object:
    return {**given, "subPath": given["subPath"].replace("$(job)", job_name).strip("/")}


def _resources(given: Object, memory: Object | None) -> Object:
    """The resources of a pod, with the memory that its checkpoints in memory take beside the trainer's own."""
    if memory is None:
        return given
    size = str(memory["sizeLimit"])
    asking = [kind for kind in ("limits", "requests") if "memory" in (given.get(kind) or {})]
    raised = {kind: {**given[kind], "memory": total(str(given[kind]["memory"]), size)} for kind in asking}
    unasked = {} if asking else {"requests": {**(given.get("requests") or {}), "memory": size}}
    return {**given, **raised, **unasked}


def _network(given: Object, uid: str) -> Object:
    default_port = _host_port(uid) if given["hostNetwork"] else DEFAULT_MASTER_PORT
    return {**given, "masterPort": given.get("masterPort") or default_port}


def _initializer(given: Object, trainer_image: str) -> Object:
    command = given.get("command") or download_command(given["storageUri"], given["targetPath"])
    return {**given, "image": given.get("image") or trainer_image, "command": command}
