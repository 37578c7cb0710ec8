"""The shape of the status, field by field: what is not named here, an API server drops. A data table."""

from __future__ import annotations

from functools import cache

from megatron_operator.api.schema.parts import Schema, array, choice, described, integer, record, text

PHASES = ("Pending", "Queued", "Starting", "Running", "Suspended", "Restarting", "Succeeded", "Failed")
LARGEST = 2**53


@cache
def status() -> Schema:
    """Schema of status."""
    return record(
        "What the operator sees and does. No one else writes it.",
        {
            "observedGeneration": _count("Generation of the spec that this status is about."),
            "phase": choice("One word that follows from the conditions.", *PHASES),
            "reason": text("Why the phase is what it is.", max_length=1024),
            "conditions": _conditions(),
            "startTime": _time("When work began; again after a suspension."),
            "completionTime": _time("When the job succeeded or failed."),
            "lastRestartTime": _time("When the gang was last restarted."),
            "lastUpdatedTime": _time("When this status was written."),
            "restarts": _restarts(),
            "replicas": _count("Pods of the present attempt."),
            "replicaStatuses": record(
                "Pods by role.", {"master": _replicas("The master."), "worker": _replicas("The workers.")}
            ),
            "lastFailure": _last_failure(),
            "waiting": record(
                "Since when the job waits to start, by the operator's clock.",
                {
                    "schedulingSince": _time("For a place; only with runPolicy.schedulingTimeoutSeconds."),
                    "refusedSince": _time("For all pods of the gang to be let in; those that were are taken back."),
                    "startupSince": _time("For a placed pod that something keeps from starting."),
                    "pod": text("That pod."),
                    "cause": text("What keeps it, such as Image or Volume.", max_length=1024),
                },
            ),
            "progress": _progress(),
            "checkpoint": record(
                "The newest checkpoint.",
                {
                    "latestIteration": _count("Its iteration."),
                    "path": text("Its folder, as the pods see it.", max_length=4096),
                    "time": _time("When it was first seen."),
                },
            ),
            "resolved": record(
                "What follows from the spec.",
                {
                    "worldSize": _count("Ranks."),
                    "dataParallelSize": _count("Ranks that hold different data."),
                    "microBatches": _count("Micro-batches of a rank in a step."),
                    "nprocPerNode": _count("Processes in a pod."),
                },
            ),
            "warnings": array("What is allowed in the spec and seldom meant.", text("A warning.", max_length=1024)),
            "gang": record(
                "The gang scheduler's object.",
                {"kind": text("Its kind."), "name": text("Its name."), "phase": text("Its phase.")},
            ),
            "selector": text("Label selector of the present pods.", max_length=1024),
        },
    )


def _count(help: str) -> Schema:
    return {**integer(help, le=LARGEST), "format": "int64"}


def _time(help: str) -> Schema:
    return {"type": "string", "format": "date-time", "description": help}


def _conditions() -> Schema:
    condition = record(
        "A condition (metav1.Condition).",
        {
            "type": text("Type.", max_length=316),
            "status": choice("Status.", "True", "False", "Unknown"),
            "reason": text("One word.", max_length=1024),
            "message": text("For people.", max_length=32768),
            "observedGeneration": _count("Generation of the spec it is about."),
            "lastTransitionTime": _time("When the status last changed."),
        },
        required=("type", "status", "reason", "lastTransitionTime"),
    )
    keys = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return {**array("How the job stands.", condition, max_items=32), **keys}


def _restarts() -> Schema:
    return record(
        "Restarts of the whole gang.",
        {
            "total": _count("All."),
            "counted": _count("Those that count against failurePolicy.maxRestarts."),
            "attempt": _count("The present attempt; it is in the names of the pods."),
            "uncountedInARow": _count("Refused starts in a row."),
            "checkpointIteration": _count("Newest checkpoint when the gang was last restarted."),
            "nextRetryTime": _time("When the next attempt starts."),
        },
    )


def _replicas(help: str) -> Schema:
    counts = {name: _count("") for name in ("desired", "pending", "running", "succeeded", "failed")}
    return record(help, counts)


def _last_failure() -> Schema:
    return record(
        "Why an attempt last ended.",
        {
            "pod": text("The pod that failed first."),
            "node": text("Its node."),
            "container": text("The container that ended it. Absent where the pod itself was refused or taken away."),
            "containerKind": choice("What that container is.", "Trainer", "InitContainer", "Sidecar"),
            "exitCode": described({"type": "integer", "format": "int32"}, "Its exit code."),
            "rank": _count("The trainer's rank that failed first, counted over all nodes, where it left word."),
            "reason": text("One word, such as OOMKilled or BAD_DATA.", max_length=1024),
            "message": text("The trainer's or the kubelet's own words.", max_length=4096),
            "iteration": _count("Iteration at which it happened."),
            "attempt": _count("The attempt that ended."),
            "time": _time("When."),
        },
    )


def _progress() -> Schema:
    metric = record(
        "One metric.", {"name": text("Name.", max_length=128), "value": text("Value, as text.", max_length=64)}
    )
    return record(
        "What the trainer says of itself.",
        {
            "iteration": _count("Iterations done."),
            "totalIterations": _count("Iterations of the whole run."),
            "percentage": _count("Whole percent done."),
            "estimatedRemainingSeconds": _count("Seconds left."),
            "tokensPerSecondPerGPU": described({"type": "number"}, "Speed."),
            "metrics": array("Newest metrics.", metric, max_items=32),
            "lastUpdatedTime": _time("When the trainer said it."),
        },
    )
