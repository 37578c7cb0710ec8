"""The shape of the status, field by field: an API server drops anything else. A data table."""

from __future__ import annotations

from functools import cache

from megatron_operator.api.schema.parts import Schema, array, boolean, choice, described, integer, record, text

PHASES = ("Pending", "Queued", "Starting", "Running", "Suspended", "Restarting", "Succeeded", "Failed")
LARGEST = 2**53


@cache
def status() -> Schema:
    """Schema of status."""
    return record(
        "The observed state; written only by the operator.",
        {
            "observedGeneration": _count("Generation of the spec that this status reflects."),
            "phase": choice("One word, derived from the conditions.", *PHASES),
            "reason": text("Reason for the phase.", max_length=1024),
            "conditions": _conditions(),
            "startTime": _time("When work started; set again after a suspension."),
            "completionTime": _time("When the job succeeded or failed."),
            "lastRestartTime": _time("When the gang was last restarted."),
            "lastUpdatedTime": _time("When this status was written."),
            "lastRestart": _last_restart(),
            "restarts": _restarts(),
            "replicas": _count("Pods of the current attempt."),
            "replicaStatuses": record(
                "Pods by role.", {"master": _replicas("The master."), "worker": _replicas("The workers.")}
            ),
            "spares": record(
                "Pods that hold a node for the gang; with scheduling.spares.",
                {"desired": _count("As many as the spec says."), "running": _count("Those that run.")},
            ),
            "lastFailure": _last_failure(),
            "failedNodes": _failed_nodes(),
            "waiting": _waiting(),
            "progress": _progress(),
            "checkpoint": _checkpoint(),
            "resolved": _resolved(),
            "warnings": array("Allowed but rarely intended parts of the spec.", text("A warning.", max_length=1024)),
            "gang": record(
                "The gang scheduler's object.",
                {"kind": text("Its kind."), "name": text("Its name."), "phase": text("Its phase.")},
            ),
            "selector": text("Label selector of the current pods.", max_length=1024),
        },
    )


def _checkpoint() -> Schema:
    return record(
        "The newest checkpoint.",
        {
            "latestIteration": _count("Its iteration."),
            "path": text("Its directory inside the pods.", max_length=4096),
            "time": _time("When it was first seen."),
        },
    )


def _resolved() -> Schema:
    return record(
        "Values derived from the spec.",
        {
            "worldSize": _count("Ranks."),
            "dataParallelSize": _count("Data-parallel size."),
            "microBatches": _count("Micro-batches of a rank per step."),
            "nprocPerNode": _count("Processes per pod."),
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
            "observedGeneration": _count("Generation of the spec that it reflects."),
            "lastTransitionTime": _time("When the status last changed."),
        },
        required=("type", "status", "reason", "lastTransitionTime"),
    )
    keys = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return {**array("Conditions of the job.", condition, max_items=32), **keys}


def _failed_nodes() -> Schema:
    return array(
        "Nodes on which the job failed, the latest first; with failurePolicy.nodeExclusion.",
        record(
            "A node.",
            {
                "name": text("Its name.", max_length=253),
                "failures": _count("Failures there, counted or because the node was lost."),
                "lastFailureTime": _time("When the last was."),
                "excludedTime": _time("Since when pods of later attempts are kept away from it."),
            },
        ),
        max_items=32,
    )


def _waiting() -> Schema:
    return record(
        "Since when the job has been waiting to start, by the operator's clock.",
        {
            "schedulingSince": _time("For quota and nodes; only with runPolicy.schedulingTimeoutSeconds."),
            "refusedSince": _time("For all pods of the gang to be accepted; a partial gang is deleted."),
            "startupSince": _time("For a scheduled pod that cannot start."),
            "pod": text("That pod."),
            "cause": text("The kind of problem, such as Image or Volume.", max_length=1024),
        },
    )


def _restarts() -> Schema:
    return record(
        "Restarts of the whole gang.",
        {
            "total": _count("All."),
            "counted": _count("Those that count against failurePolicy.maxRestarts."),
            "attempt": _count("The current attempt of the ranks; pod names contain it, or podAttempt."),
            "podAttempt": _count("The attempt in the pod names if the ranks have been restarted inside their pods."),
            "uncountedInARow": _count("Consecutive rejected starts."),
            "checkpointIteration": _count("Newest checkpoint when the gang was last restarted."),
            "memoryIteration": _count("Newest checkpoint in the memory of the nodes when the gang was last restarted."),
            "nextRetryTime": _time("When the next attempt starts."),
        },
    )


def _last_restart() -> Schema:
    return record(
        "How the last restart went, as far as launchers report it.",
        {
            "attempt": _count("The attempt that it started."),
            "inPlace": boolean("Whether the pods stayed and only their ranks started again."),
            "reason": text("Why, as in condition Restarting.", max_length=1024),
            "detectedTime": _time("When the failure happened, or the last heartbeat was too old."),
            "decidedTime": _time("When the restart was decided."),
            "ranksStartedTime": _time("When the last node had started its ranks."),
            "processGroupTime": _time("When the ranks had found each other."),
            "loadedTime": _time("When model, data and checkpoint were loaded."),
            "firstStepTime": _time("When the first step was done."),
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
            "container": text("The container that ended it. Absent if the pod itself was rejected or evicted."),
            "containerKind": choice("Kind of that container.", "Trainer", "InitContainer", "Sidecar"),
            "exitCode": described({"type": "integer", "format": "int32"}, "Its exit code."),
            "rank": _count("Global rank of the trainer process that failed first, if it left a record."),
            "reason": text("One word, such as OOMKilled or BAD_DATA.", max_length=1024),
            "message": text("The trainer's or the kubelet's message.", max_length=4096),
            "iteration": _count("Iteration at which it happened."),
            "host": text("Host name of the failed rank's container.", max_length=253),
            "stack": text("Where the failed rank stood in the program, innermost function first.", max_length=512),
            "gpuError": text("What the driver reported of the node's GPUs during the attempt (Xid).", max_length=512),
            "attempt": _count("The attempt that ended."),
            "time": _time("When."),
        },
    )


def _progress() -> Schema:
    metric = record(
        "One metric.", {"name": text("Name.", max_length=128), "value": text("Value, as text.", max_length=64)}
    )
    return record(
        "Progress that the trainer reported.",
        {
            "iteration": _count("Iterations done."),
            "totalIterations": _count("Iterations of the whole run."),
            "percentage": _count("Percentage completed, rounded down."),
            "estimatedRemainingSeconds": _count("Seconds left."),
            "tokensPerSecondPerGPU": described({"type": "number"}, "Speed."),
            "metrics": array("Newest metrics.", metric, max_items=32),
            "lastUpdatedTime": _time("When the trainer reported it."),
            "attempt": _count("The attempt that reported it."),
        },
    )
