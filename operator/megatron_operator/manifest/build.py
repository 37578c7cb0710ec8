"""Builds the Job value from a manifest in which nothing is wrong and whose defaults are filled in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from megatron_operator.core.job import (
    Checkpoint,
    Elastic,
    FailurePolicy,
    Initializer,
    Job,
    Network,
    Rdma,
    Rule,
    RunPolicy,
    Scheduling,
    Topology,
)
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
        run_policy=_run_policy(spec["runPolicy"]),
        success_policy=spec["successPolicy"],
        elastic=_elastic(spec.get("elasticPolicy")),
        failure_policy=_failure_policy(spec["failurePolicy"]),
        warnings=(*arguments.warnings, *rules.warnings(spec, known)),
    )


def _checkpoint(given: Object, job_name: str) -> Checkpoint:
    claim = given.get("pvc", {})
    return Checkpoint(
        claim_name=claim.get("claimName"),
        claim_template=claim.get("template"),
        mount_path=given["mountPath"],
        sub_path=given["subPath"].replace("$(job)", job_name).strip("/"),
        resume=given["resume"],
        adopts=given["adopt"],
        save_on_termination=given["onTermination"]["save"],
        grace_period_s=given["onTermination"]["gracePeriodSeconds"],
        retain_on_delete=given["retainOnDelete"],
    )


def _network(given: Object, uid: str) -> Network:
    rdma = given.get("rdma")
    return Network(
        master_port=given.get("masterPort") or (_host_port(uid) if given["hostNetwork"] else DEFAULT_MASTER_PORT),
        host_network=given["hostNetwork"],
        rdma=Rdma(resource=rdma["resource"], count=rdma["count"], ipc_lock=rdma["ipcLock"]) if rdma else None,
        multus_networks=tuple(given.get("multusNetworks", ())),
        nccl_env=given.get("ncclEnv", {}),
    )


def _host_port(uid: str) -> int:
    """A port of the job's own: on the node's network two jobs with the same port would clash."""
    return HOST_PORTS[int(hashlib.sha256(uid.encode()).hexdigest(), 16) % len(HOST_PORTS)]


def _initializer(given: Object, trainer_image: str) -> Initializer:
    return Initializer(
        name=given["name"],
        image=given.get("image") or trainer_image,
        command=tuple(given.get("command", ())) or download_command(given["storageUri"], given["targetPath"]),
        target_path=given["targetPath"],
        storage_uri=given.get("storageUri", ""),
        env=tuple(given.get("env", ())),
        env_from=tuple(given.get("envFrom", ())),
    )


def download_command(storage_uri: str, target_path: str) -> tuple[str, ...]:
    """The command that fetches an hf:// source with the client that the trainer's image has."""
    repository = storage_uri.removeprefix("hf://")
    kind: tuple[str, ...] = ()
    if repository.startswith("datasets/"):
        repository, kind = repository.removeprefix("datasets/"), ("--repo-type", "dataset")
    return ("hf", "download", repository, *kind, "--local-dir", target_path)


def _scheduling(given: Object, num_nodes: int) -> Scheduling:
    topology = given.get("topology")
    return Scheduling(
        gang=given["gang"],
        min_member=given.get("minMember") or num_nodes,
        queue=given.get("queue"),
        priority_class_name=given.get("priorityClassName"),
        scheduler_name=given.get("schedulerName"),
        schedule_timeout_s=given.get("scheduleTimeoutSeconds"),
        topology=topology
        and Topology(
            key=topology.get("key"),
            highest_tier_allowed=topology.get("highestTierAllowed"),
            mode=topology["mode"],
            exclusive=topology["exclusive"],
        ),
    )


def _copied(given: Object | None, spec: Object, kind: str) -> dict[str, str]:
    """The job's labels or annotations that copyToPods names, by whole name or by a beginning that ends with *."""
    wanted = tuple((spec.get("copyToPods") or {}).get(kind) or ())
    prefixes = tuple(each.removesuffix("*") for each in wanted if each.endswith("*"))
    found = {key: value for key, value in (given or {}).items() if key in wanted or key.startswith(prefixes)}
    return {key: value for key, value in found.items() if not key.startswith(rules.NEVER_COPIED)}


def _elastic(given: Object | None) -> Elastic | None:
    return Elastic(min_nodes=given["minNodes"], max_nodes=given["maxNodes"]) if given else None


def _run_policy(given: Object) -> RunPolicy:
    return RunPolicy(
        clean_pod_policy=given["cleanPodPolicy"],
        ttl_s=given.get("ttlSecondsAfterFinished"),
        ttl_policy=given["ttlPolicy"],
        active_deadline_s=given.get("activeDeadlineSeconds"),
        startup_deadline_s=given["startupDeadlineSeconds"],
        scheduling_timeout_s=given.get("schedulingTimeoutSeconds"),
    )


def _failure_policy(given: Object) -> FailurePolicy:
    rules = tuple(
        Rule(
            action=rule["action"],
            exit_codes=tuple(rule.get("onExitCodes", ())),
            reasons=tuple(rule.get("onReasons", ())),
        )
        for rule in given.get("rules", ())
    )
    return FailurePolicy(
        max_restarts=given["maxRestarts"],
        reset_after_progress=given["resetAfterProgress"],
        backoff_initial_s=given["backoffSeconds"]["initial"],
        backoff_max_s=given["backoffSeconds"]["max"],
        hang_timeout_s=given["hangTimeoutSeconds"],
        rules=rules,
    )
