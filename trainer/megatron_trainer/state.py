"""Where a run stands: the few numbers that a checkpoint carries besides tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """After `iteration` optimizer steps, equal on all ranks. Counts are over all ranks; losses in nats per token."""

    iteration: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    skipped_iterations: int = 0
    last_validation_loss: float | None = None
    best_validation_loss: float | None = None
