"""Where a run stands: the few numbers that a checkpoint carries besides tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_trainer.data.sample import Stretch


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """After `iteration` optimizer steps, equal on all ranks. Counts are over all ranks; losses in nats per token.

    history: the layouts in which consumed_samples were read, which say what is left of the epoch in another layout.
    """

    iteration: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    skipped_iterations: int = 0
    last_validation_loss: float | None = None
    last_validation_iteration: int | None = None
    best_validation_loss: float | None = None
    history: tuple[Stretch, ...] = ()


def from_plain(fields: Mapping[str, Any]) -> TrainState:
    """The state whose dataclasses.asdict a checkpoint holds; older checkpoints have no history."""
    return TrainState(**{**fields, "history": tuple(Stretch(**entry) for entry in fields.get("history", ()))})
