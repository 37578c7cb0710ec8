"""Builds the Job value from a manifest in which nothing is wrong and whose defaults are filled in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from megatron_operator.api.schema.declared import read
from megatron_operator.api.values import (
    Checkpoint,
    Elastic,
    FailurePolicy,
    Initializer,
    Network,
    RunPolicy,
    Scheduling,
)
from megatron_operator.core.job import Job
from megatron_operator.manifest import rules
from megatron_trainjob.args.parse import Accepted
from megatron_trainjob.environment import DEFAULT_MASTER_PORT

Object = Mapping[str, Any]
# Between the ports of node agents and Kubernetes' own NodePorts (30000) and ephemeral ports (32768).
HOST_PORTS = range(20000, 30000)


def build(manifest: Object, spec: Object, arguments: Accepted, *, nproc_per_node: int, default_image: str) -> Job:
    """The job of a manifest with which nothing is wrong."""
    metadata = manifest["metadata"]
    known = {name: getattr(arguments.args, name) for name in sorted(arguments.given)}
    image = spec.get("image") or default_image
    return Job(
        name=metadata["name"],
        namespace=metadata.get("namespace") or "default",
        uid=metadata.get("uid") or "",
        generation=metadata.get("generation") or 0,
        labels=metadata.get("labels") or {},
        copied_labels=_copied(metadata.get("labels"), spec, "labels"),
        copied_annotations=_copied(metadata.get("annotations"), spec, "annotations"),
        suspend=spec["suspend"],
        managed_by=spec["managedBy"],
        task=spec["task"],
        args=arguments.args,
        given_args={**spec.get("extraArgs", {}), **known},
        image=image,
        image_pull_policy=spec.get("imagePullPolicy"),
        image_pull_secrets=tuple(spec.get("imagePullSecrets", ())),
        command=tuple(spec.get("command", ())),
        env=tuple(spec.get("env", ())),
        env_from=tuple(spec.get("envFrom", ())),
        service_account_name=spec.get("serviceAccountName"),
        num_nodes=spec["numNodes"],
        nproc_per_node=nproc_per_node,
        resources=spec.get("resourcesPerNode", {}),
        checkpoint=_checkpoint(spec["checkpoint"], metadata["name"]),
        volumes=tuple(spec.get("volumes", ())),
        volume_mounts=tuple(spec.get("volumeMounts", ())),
        initializers=tuple(_initializer(each, image) for each in spec.get("initializers", ())),
        shm_size=str(spec["shmSize"]) if "shmSize" in spec else None,
        network=_network(spec["network"], metadata.get("uid") or metadata["name"]),
        pod_template=spec.get("podTemplate", {}),
        master_template=spec.get("masterTemplate", {}),
        worker_template=spec.get("workerTemplate", {}),
        scheduling=_scheduling(spec["scheduling"], spec["numNodes"]),
        run_policy=read(RunPolicy, spec["runPolicy"]),
        success_policy=spec["successPolicy"],
        elastic=read(Elastic, spec["elasticPolicy"]) if spec.get("elasticPolicy") else None,
        failure_policy=read(FailurePolicy, spec["failurePolicy"]),
        warnings=(*arguments.warnings, *rules.warnings(spec, known)),
    )


def _host_port(uid: str) -> int:
    """A port of the job's own: on the node's network two jobs with the same port would clash."""
    return HOST_PORTS[int(hashlib.sha256(uid.encode()).hexdigest(), 16) % len(HOST_PORTS)]


def download_command(storage_uri: str, target_path: str) -> tuple[str, ...]:
    """The command that fetches an hf:// source with the client that the trainer's image has."""
    repository = storage_uri.removeprefix("hf://")
    kind: tuple[str, ...] = ()
    if repository.startswith("datasets/"):
        repository, kind = repository.removeprefix("datasets/"), ("--repo-type", "dataset")
    return ("hf", "download", repository, *kind, "--local-dir", target_path)


def _copied(given: Object | None, spec: Object, kind: str) -> dict[str, str]:
    """The job's labels or annotations that copyToPods names, by whole name or by a beginning that ends with *."""
    wanted = tuple((spec.get("copyToPods") or {}).get(kind) or ())
    prefixes = tuple(each.removesuffix("*") for each in wanted if each.endswith("*"))
    found = {key: value for key, value in (given or {}).items() if key in wanted or key.startswith(prefixes)}
    return {key: value for key, value in found.items() if not key.startswith(rules.NEVER_COPIED)}


def _checkpoint(given: Object, job_name: str) -> Checkpoint:
    return read(Checkpoint, {**given, "subPath": given["subPath"].replace("$(job)", job_name).strip("/")})


def _network(given: Object, uid: str) -> Network:
    default_port = _host_port(uid) if given["hostNetwork"] else DEFAULT_MASTER_PORT
    return read(Network, {**given, "masterPort": given.get("masterPort") or default_port})


def _initializer(given: Object, trainer_image: str) -> Initializer:
    command = given.get("command") or download_command(given["storageUri"], given["targetPath"])
    return read(Initializer, {**given, "image": given.get("image") or trainer_image, "command": command})


def _scheduling(given: Object, num_nodes: int) -> Scheduling:
    return read(Scheduling, {**given, "minMember": given.get("minMember") or num_nodes})
