"""Random pods and progress reports, most of them absurd: what anybody who may create pods, or runs one, can say."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

from megatron_operator.api import names
from megatron_operator.timestamp import to_text

Object = dict[str, Any]
JOB, UID = "tune", "uid-1"
OWNER = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": JOB, "uid": UID, "controller": True}
WORDS = (
    *(
        "",
        " ",
        "0",
        "-1",
        "oops",
        "null",
        "NaN",
        "true",
        "9" * 63,
        "x" * 300,
        "\x00",
        "\x1b[2J",
        "\ud800",
        "名前",
        "[" * 3000,
    ),
    *("Error", "OOMKilled", "Evicted", "Completed", "Unschedulable", "PreemptionByScheduler", "ERROR", "BAD_DATA"),
    *("ImagePullBackOff", "CrashLoopBackOff", "OutOfcpu", "StartError", "Ready", "PodScheduled", "DisruptionTarget"),
    *("True", "False", "Pending", "Running", "Succeeded", "Failed", "Unknown", "trainer", "istio-proxy", "training"),
)
NUMBERS = (
    0,
    1,
    2,
    64,
    137,
    143,
    -1,
    2**31,
    2**53,
    2**53 + 1,
    2**64,
    10**400,
    0.5,
    1e308,
    math.inf,
    -math.inf,
    math.nan,
)
TIMES = (
    *("2027-01-15T07:59:50Z", "2027-01-15T08:00:00.5+01:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"),
    *("2027-01-15T09:30:00Z", "1969-12-31T00:00:00Z"),
)
PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")


def anything(draw: random.Random, depth: int = 3) -> Any:
    """Any JSON value, and NaN."""
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice(WORDS),
        lambda: draw.choice(NUMBERS),
        lambda: draw.choice([None, True, False]),
    ]
    if depth:
        kinds += [
            lambda: [anything(draw, depth - 1) for _ in range(draw.randrange(4))],
            lambda: {draw.choice(WORDS): anything(draw, depth - 1) for _ in range(draw.randrange(4))},
        ]
    return draw.choice(kinds)()


def sane(draw: random.Random, value: Any, *, odds: float = 0.15) -> Any:
    """The value, now and then anything else in its place."""
    return anything(draw) if draw.random() < odds else value


def any_message(draw: random.Random) -> str:
    """A termination message: a record with odd fields, other JSON, or text."""
    record = {
        "exitCode": anything(draw),
        "reason": sane(draw, "ERROR", odds=0.5),
        "rank": anything(draw),
        "iteration": sane(draw, 12, odds=0.7),
        "message": sane(draw, "loss is nan", odds=0.5),
    }
    kept = {key: value for key, value in record.items() if draw.random() < 0.8}
    text = json.dumps(draw.choice([kept, kept, anything(draw)]))
    return draw.choice(
        [text, text, text[: draw.randrange(len(text) + 1)], draw.choice(WORDS), "{" * draw.randrange(5000)]
    )


def typed_pod(draw: random.Random) -> Object:
    """A pod that an API server would take: right types and times, any words."""
    places = [f"{JOB}-a{draw.choice((0, 0, 0, 1))}-{place}" for place in ("master-0", "worker-0", "worker-1")]
    name = draw.choice(places if draw.random() < 0.85 else WORDS)
    labels = {
        f"{names.GROUP}/{key}": draw.choice(WORDS) for key in ("restart-attempt", "replica-index", "replica-type")
    }
    metadata: Object = {
        "namespace": "team",
        "name": name,
        "uid": f"uid of {name}",
        "resourceVersion": str(draw.randrange(1, 10**6)),
        "labels": {**labels, names.LABEL_JOB_NAME: JOB, names.KUEUE_MANAGED: draw.choice(WORDS)},
        "annotations": {draw.choice(WORDS): draw.choice(WORDS)},
        "ownerReferences": draw.choice(
            [[OWNER]] * 12 + [[], [{**OWNER, "uid": "uid-0"}], [{**OWNER, "controller": False}]]
        ),
    }
    if draw.random() < 0.2:
        metadata["deletionTimestamp"] = draw.choice(TIMES)
    spec = {
        "nodeName": draw.choice(["", "node-1"]),
        "schedulingGates": draw.choice([[], [{"name": draw.choice(WORDS)}]]),
    }
    return {"metadata": metadata, "spec": spec, "status": _status(draw)}


def any_pod(draw: random.Random) -> Object:
    """A pod, in one of three with something of a wrong type in it, as no API server hands out (yet)."""
    pod = typed_pod(draw)
    if draw.random() < 0.33:
        part = draw.choice([pod["metadata"], pod["spec"], pod["status"], *pod["status"].get("conditions", ())])
        key = draw.choice(
            [key for key in part if key not in ("namespace", "labels", "uid", "resourceVersion", "name")] or ["x"]
        )
        part[key] = anything(draw)
    return pod


def any_event(draw: random.Random) -> Object:
    """An event about a pod: anybody may write one in his namespace."""
    return {
        "metadata": {
            "name": "e",
            "resourceVersion": str(draw.randrange(1, 10**6)),
            "creationTimestamp": draw.choice(TIMES),
        },
        "type": draw.choice(["Normal", "Warning", draw.choice(WORDS)]),
        "reason": draw.choice(WORDS),
        "message": draw.choice(WORDS) * draw.choice([1, 20]),
        "lastTimestamp": draw.choice([None, *TIMES]),
        "source": draw.choice([{"component": "kubelet"}, {"component": draw.choice(WORDS)}, None]),
        "series": draw.choice([None, {"lastObservedTime": draw.choice(TIMES)}]),
    }


def any_report(draw: random.Random) -> Any:
    """The body of a push."""
    progress = {
        "phase": sane(draw, "training"),
        "iteration": sane(draw, 30),
        "total_iterations": sane(draw, 120),
        "remaining_s": sane(draw, 9.5, odds=0.5),
        "tokens_per_second_per_gpu": sane(draw, 100.0, odds=0.5),
        "metrics": sane(draw, {draw.choice(WORDS): sane(draw, 2.5) for _ in range(draw.randrange(60))}),
        "checkpoint_iteration": sane(draw, 25),
        "checkpoint_path": sane(draw, "/checkpoints/" + draw.choice(WORDS) * 20),
        "updated_at": anything(draw),
        "outputs": anything(draw),
        draw.choice(WORDS): anything(draw),
    }
    kept = {key: value for key, value in progress.items() if draw.random() < 0.9}
    trainer_status = {
        "progressPercentage": sane(draw, 40, odds=0.5),
        "estimatedRemainingSeconds": anything(draw),
        "metrics": sane(draw, [{"name": draw.choice(WORDS), "value": sane(draw, "1.5")}]),
    }
    return draw.choice([{"progress": kept}, {"progress": kept}, {"trainerStatus": trainer_status}, anything(draw)])


def _status(draw: random.Random) -> Object:
    conditions = [
        {
            "type": type_,
            "status": draw.choice(["True", "False", "Unknown", draw.choice(WORDS)]),
            "reason": draw.choice(WORDS),
            "message": draw.choice(WORDS),
            "lastTransitionTime": draw.choice(TIMES),
        }
        for type_ in ("PodScheduled", "Ready", "DisruptionTarget", draw.choice(WORDS))
        if draw.random() < 0.5
    ]
    return {
        "phase": sane(draw, draw.choice(PHASES), odds=0.02),
        "reason": draw.choice(["", "", "", draw.choice(WORDS)]),
        "message": draw.choice(WORDS),
        "conditions": conditions,
        "initContainerStatuses": [_container(draw) for _ in range(draw.randrange(2))],
        "containerStatuses": [_container(draw) for _ in range(draw.randrange(3))],
    }


def _container(draw: random.Random) -> Object:
    states: list[Object] = [
        {},
        {"running": {"startedAt": draw.choice(TIMES)}},
        {"waiting": {"reason": draw.choice(WORDS), "message": draw.choice(WORDS)}},
        {
            "terminated": {
                "exitCode": draw.choice([0, 1, 2, 64, 134, 137, 143, 255, -1, 2**31 - 1]),
                "reason": draw.choice(WORDS),
                "message": any_message(draw),
                "finishedAt": draw.choice([*TIMES, None, to_text(draw.uniform(1.79e9, 1.81e9))]),
            }
        },
    ]
    return {
        "name": draw.choice(["trainer", "trainer", draw.choice(WORDS)]),
        "state": draw.choice([*states, states[-1]]),
    }
