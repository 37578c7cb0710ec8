"""What a task is: a forward step that returns the model's output and the function from it to a loss and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_trainer.data.values import MicroBatch
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.pipeline import ForwardStep
from megatron_trainjob.args.tree import TrainArgs

Metrics = Mapping[str, Tensor]
"""By name: [2] float64, the local sum and count; their sums over all ranks give the mean."""

Prepare = Callable[[Sequence[MicroBatch]], Sequence[MicroBatch]]
Finish = Callable[[Mapping[str, float]], Mapping[str, float]]


def sum_and_count(values: Tensor) -> Tensor:
    """The metric of these values, [2] float64. values: one dimension, possibly empty."""
    return torch.stack([values.double().sum(), values.new_tensor(len(values)).double()])


def weighted(loss: Tensor, count: int, args: TrainArgs) -> Tensor:
    """The metric of a micro-batch's mean loss over `count` items, [2] float64.

    In training it has the weight with which it trains: without calculate_per_token_loss that of any other micro-batch.
    An evaluation gives equal weight to all items, however they lie in micro-batches.
    """
    weight = count if args.calculate_per_token_loss or not torch.is_grad_enabled() else 1
    mean = loss.detach().double()
    return torch.stack([mean * weight, mean.new_tensor(weight)])


def as_they_are(batches: Sequence[MicroBatch]) -> Sequence[MicroBatch]:
    """The `prepare` of a task that needs nothing before its forward passes."""
    return batches


@dataclass(frozen=True, kw_only=True)
class Task:
    """forward_step has the form that Megatron's pipeline schedules want; losses[0] is the one that evaluation tracks.

    has_channels: its metrics include, beside `losses`, names that come from the data and that not all ranks know.
    prepare: called with this rank's micro-batches of a global batch before their forward passes. Collective.
    finish: turns the means of `losses` into what is reported; a mean without samples is missing. reported: the names of
    the result where they differ from `losses`.
    """

    forward_step: ForwardStep
    losses: tuple[str, ...]
    has_channels: bool = False
    prepare: Prepare = as_they_are
    finish: Finish = dict
    reported: tuple[str, ...] = ()

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The names of the metrics that an evaluation reports, the loss first."""
        return self.reported or self.losses


TaskFactory = Callable[[TrainArgs, ModelSpec], Task]
