"""Small factories for the operator's values: a valid manifest, the job it makes, pods as they are seen."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_operator import manifest
from megatron_operator.api import names
from megatron_operator.core import attempts
from megatron_operator.core.job import Job
from megatron_operator.core.observe import Pod, Seen
from megatron_operator.core.plan import Plan, Ref
from megatron_trainjob import families
from megatron_trainjob.families import shapes
from megatron_trainjob.progress import Progress

ARGS = {"model": "/models/tiny", "dataset": ["/data/train.jsonl"], "train_iters": 100}
TINY = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
}
"""The config.json of a small model."""
NOW = 1_800_000_000.0
START = "2027-01-15T07:00:00Z"  # an hour before NOW


def write_tokenizer(folder: Path, tokens: int = 3) -> None:
    """A tokenizer.json of so many whole words, for commands that look at a model's folder without loading it."""
    vocabulary = {f"word{number}": number for number in range(tokens)}
    content = {"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "word0"}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def raw(spec: Mapping[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    """A valid manifest of two nodes with these fields of the spec and of the metadata."""
    header = {"name": "tune", "namespace": "team", "uid": "uid-1", "generation": 1}
    return copy.deepcopy(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {**header, **metadata},
            "spec": {
                "task": "sft",
                "args": ARGS,
                "numNodes": 2,
                "checkpoint": {"pvc": {"claimName": "disk"}},
                **(spec or {}),
            },
        }
    )


def job(spec: Mapping[str, Any] | None = None, **metadata: Any) -> Job:
    """The job of such a manifest."""
    parsed = manifest.parse(raw(spec, **metadata))
    assert isinstance(parsed, Job), parsed
    return parsed


def pod(rank: int = 0, *, attempt: int = 0, phase: str = "Running", **fields: Any) -> Pod:
    """The pod with this node rank as it is seen."""
    known = {
        "name": names.pod_name("tune", attempt, rank),
        "uid": f"pod-{attempt}-{rank}",
        "attempt": attempt,
        "role": names.WORKER if rank else names.MASTER,
        "index": max(rank - 1, 0),
        "phase": phase,
        "ready": phase == "Running",
        "node": f"node-{rank}",
        "scheduled_at": NOW - 100,
    }
    if phase == "Failed":
        known |= {"exit_code": 1, "finished_at": NOW - 5}
    return Pod(**{**known, **fields})


def ref(rank: int, attempt: int = 0) -> Ref:
    """What a plan calls the pod with this node rank."""
    return Ref(api_version="v1", kind="Pod", name=names.pod_name("tune", attempt, rank), uid=f"pod-{attempt}-{rank}")


def failed(rank: int = 0, exit_code: int = 1, **fields: Any) -> Pod:
    """A pod that ended with this code."""
    return pod(rank, phase="Failed", exit_code=exit_code, **{"finished_at": NOW - 5, **fields})


def condition(type_: str, *, is_true: bool = True, reason: str = "Because", message: str = "") -> dict[str, Any]:
    """A stored condition."""
    return {
        "type": type_,
        "status": "True" if is_true else "False",
        "reason": reason,
        "message": message,
        "observedGeneration": 1,
        "lastTransitionTime": START,
    }


RUNNING_STATUS = {
    "observedGeneration": 1,
    "phase": "Running",
    "conditions": [
        condition(names.ADMITTED, reason=names.NOT_QUEUED),
        condition(names.PODS_READY, reason=names.ALL_PODS_READY),
        condition(names.RUNNING, reason=names.ALL_PODS_RUNNING),
    ],
    "startTime": START,
    "restarts": {"total": 0, "counted": 0, "attempt": 0, "uncountedInARow": 0},
    "lastUpdatedTime": START,
}


def seen(*pods: Pod, status: Mapping[str, Any] | None = None, **fields: Any) -> Seen:
    """What is seen of a running job of two nodes with these pods."""
    stored = RUNNING_STATUS if status is None else status
    attempt = attempts.of_pods(stored)
    known = {
        "status": stored,
        "pods": pods,
        "service_selector": names.master_selector("tune", attempt),
        "config_maps": frozenset({names.config_map_name("tune", attempt)}),
    }
    return Seen(**{**known, **fields})


def restarts(**counters: int) -> dict[str, Any]:
    """The running status with these restart counters."""
    return {**RUNNING_STATUS, "restarts": {**RUNNING_STATUS["restarts"], **counters}}


def beat(iteration: int = 10, *, age_s: float = 1.0, **fields: Any) -> Progress:
    """A progress record of this age."""
    known = {"phase": "training", "iteration": iteration, "total_iterations": 100, "updated_at": NOW - age_s}
    return Progress(**{**known, **fields})


def kinds(plan: Plan) -> list[tuple[str, str]]:
    """Kind and name of each object that a plan creates, in its order."""
    return [(each["kind"], each["metadata"]["name"]) for each in plan.create]


def conditions(status: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Status and reason of each condition."""
    return {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}


def write_weights(folder: Path, **rows: int) -> None:
    """A safetensors file of nothing but a header: tensors of that many rows, by name with __ for each dot."""
    write_header(folder, {name.replace("__", "."): (number, 4) for name, number in rows.items()})


def write_model_header(folder: Path, config: Mapping[str, Any]) -> None:
    """The header of all weights that a model with this config.json has."""
    write_header(folder, shapes.shapes(families.read(config)))


def write_header(folder: Path, stored: Mapping[str, Sequence[int]], data: Mapping[str, bytes] | None = None) -> None:
    """A safetensors file with tensors of these shapes, and of these bytes, by default none."""
    offset, header = 0, {}
    for name, shape in stored.items():
        length = len(data[name]) if data else 0
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header).encode()
    content = b"".join(data[name] for name in stored) if data else b""
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content)
