"""The state of a run: the few numbers in a checkpoint besides tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from megatron_trainer.data.ordering.sample import Segment
from megatron_trainer.failure import TrainingError
from megatron_trainjob.exit_codes import ExitCode

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """After `iteration` optimizer steps, equal on all ranks. Counts are over all ranks; losses in nats per token.

    history: the layouts in which consumed_samples were read, which determine the rest of the epoch in another layout.
    last_metric: metric_for_best_model of the last evaluation.
    data: identity of the data that was read, empty if unknown. run: as in the manifest of a checkpoint.
    """

    iteration: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    skipped_iterations: int = 0
    last_validation_loss: float | None = None
    last_validation_iteration: int | None = None
    best_validation_loss: float | None = None
    last_metric: float | None = None
    history: tuple[Segment, ...] = ()
    data: str = ""
    run: str = ""


def on_data(state: TrainState, identity: str, *, total_iterations: int) -> TrainState:
    """The state of a run on the data with this identity; warns if the data changed, so that there is no next sample.

    Raises:
        TrainingError: the data changed, and there is no step left to train on it.
    """
    if state.data not in ("", identity):
        if state.iteration >= total_iterations:
            message = (
                f"the checkpoint already has all {total_iterations} steps of this run, on different data "
                "(or in a different order): nothing would be trained; raise train_iters to train further on this data, "
                "or set another save and start from the weights (load, with finetune true)"
            )
            raise TrainingError(ExitCode.CHECKPOINT_INCOMPATIBLE, message)
        logger.warning(
            "the data or its order differs from the checkpoint's: after its consumed_samples=%d some samples may be "
            "repeated and others skipped; to start over from its weights, pass it as load with finetune: true",
            state.consumed_samples,
        )
    return replace(state, data=identity)


def from_plain(fields: Mapping[str, Any]) -> TrainState:
    """The state whose dataclasses.asdict a checkpoint holds; older checkpoints have no history."""
    return TrainState(**{**fields, "history": tuple(Segment(**entry) for entry in fields.get("history", ()))})
