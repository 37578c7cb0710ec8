"""Jobs of two pods that really train, and what they leave on their claims; for containers and plain processes alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from tests.support.operator.job_client import manifest, wait_until

STEPS = 300
PATIENCE_S = 400.0
CLAIM = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}


class Volumes(Protocol):
    """Whoever keeps the claims as folders of this machine."""

    def claim(self, name: str) -> Path:
        """The folder of a claim."""
        ...


def job(name: str, args: dict[str, object]) -> dict[str, Any]:
    """Two pods of one rank each, checkpoints on a claim that the operator makes."""
    return manifest(
        name,
        args=args,
        checkpoint={"pvc": {"template": {"spec": CLAIM}}},
        failurePolicy={"backoffSeconds": {"initial": 0, "max": 1}},
    )


def claim_of(name: str) -> str:
    """The claim that the operator makes for this job."""
    return f"{name}-checkpoint"


def saved(volumes: Volumes, name: str) -> Path:
    """The folder that the job saves to."""
    return volumes.claim(claim_of(name)) / name


def losses(volumes: Volumes, name: str) -> list[float]:
    """The losses of every step in the trainer's own log."""
    lines = (saved(volumes, name) / "logging.jsonl").read_text().splitlines()
    return [line["lm loss"] for line in map(json.loads, lines) if "lm loss" in line]


def checkpoint(volumes: Volumes, name: str) -> int:
    """The iteration of the newest checkpoint, 0 without one."""
    path = saved(volumes, name) / "latest_checkpointed_iteration.txt"
    return int(path.read_text()) if path.exists() else 0


def await_checkpoint(volumes: Volumes, name: str) -> int:
    """Waits for the first one."""
    return wait_until(lambda: checkpoint(volumes, name), bool, "a checkpoint", PATIENCE_S)
