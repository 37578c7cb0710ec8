"""Forward steps of tasks whose loss is of whole sequences: of their log-probabilities, or of the scores of a head.

Shape suffix: S sequences of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from megatron_trainer import parallel
from megatron_trainer.data.values import MicroBatch
from megatron_trainer.models.score import SequenceScores
from megatron_trainer.models.sequence_sums import SequenceSums
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.tasks.forward import cross_entropy, forward
from megatron_trainer.tasks.task import ForwardStep
from megatron_trainjob.args.tree import TrainArgs

SequenceLoss = Callable[[MicroBatch, Tensor], Any]
"""(the whole micro-batch, [2, S] sums or [S, C] scores) -> what a forward step's second value returns."""


def step_of_sums(loss: SequenceLoss, args: TrainArgs, spec: ModelSpec) -> ForwardStep:
    """The step of a loss of `sequence_sums`."""

    def step(batches: Iterator[MicroBatch], model: nn.Module) -> tuple[Tensor, Any]:
        whole = next(batches)
        return sequence_sums(args, spec, whole, model), partial(loss, whole)

    return step


def step_of_scores(loss: SequenceLoss) -> ForwardStep:
    """The step of a loss of the scores [S, C] that the model's head gives each sequence."""

    def step(batches: Iterator[MicroBatch], model: nn.Module) -> tuple[Tensor, Any]:
        whole = next(batches)
        batch = parallel.local_part(whole)
        return forward(model, whole, batch, output_processor=SequenceScores(whole=whole, batch=batch)), partial(
            loss, whole
        )

    return step


def sequence_sums(args: TrainArgs, spec: ModelSpec, whole: MicroBatch, model: nn.Module) -> Tensor:
    """On the last stage [2, S]: sums over the tokens of this context rank, see SequenceSums; else hidden states."""
    batch = parallel.local_part(whole)
    sums = SequenceSums(spec=spec, batch=batch, cross_entropy=cross_entropy(args))
    output: Tensor = forward(model, whole, batch, output_processor=sums)
    return output
