"""The reference of preference training: log-probabilities of answers under the model before training.

Full training keeps a second, frozen model. LoRA uses the model itself, without its adapters or with those of
ref_adapter_load in their place while the reference runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from megatron_trainer import parallel
from megatron_trainer.data.values import MicroBatch
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.pipeline import run_schedule
from megatron_trainer.tasks.sequences import sequence_sums
from megatron_trainer.tasks.shares import with_shares
from megatron_trainjob.args.tree import TrainArgs

Shown = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """chunks: the model to run; within `shown` it acts as the reference."""

    args: TrainArgs
    spec: ModelSpec
    chunks: Sequence[nn.Module]
    shown: Shown = nullcontext

    def log_probabilities(self, batches: Sequence[MicroBatch]) -> list[Tensor | None]:
        """For each micro-batch [S] on the last stage of the pipeline, None on the others. Collective."""
        was_training = self.chunks[0].training
        for chunk in self.chunks:
            chunk.eval()
        with torch.no_grad(), self.shown():
            step = partial(_forward_step, self.args, self.spec)
            found = run_schedule(self.chunks, step, batches, is_training=False)
        for chunk in self.chunks:
            chunk.train(was_training)
        return [one["log_probability_S"] for one in found] or [None] * len(batches)


def with_reference(args: TrainArgs, reference: Reference | None, batches: Sequence[MicroBatch]) -> Sequence[MicroBatch]:
    """The micro-batches with their reference log-probabilities and loss shares. Collective."""
    if reference is not None and any(batch.reference_S is None for batch in batches):
        known = reference.log_probabilities(batches)
        batches = [replace(batch, reference_S=one) for batch, one in zip(batches, known, strict=True)]
    return with_shares(batches) if args.calculate_per_token_loss else batches


@contextmanager
def swapped(parameters: Sequence[nn.Parameter], others: Sequence[Tensor]) -> Iterator[None]:
    """Context in which the parameters hold the other values, in place; on exit they are restored bit for bit."""
    own = [parameter.detach().clone() for parameter in parameters]
    _put(parameters, others)
    try:
        yield
    finally:
        _put(parameters, own)


@torch.no_grad()
def _put(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _forward_step(
    args: TrainArgs, spec: ModelSpec, batches: Iterator[MicroBatch], model: nn.Module
) -> tuple[Tensor, Any]:
    return sequence_sums(args, spec, next(batches), model), _as_metrics


def _as_metrics(sums_2S: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
    """In the form in which the schedule takes losses."""
    return sums_2S.new_zeros(()), {"log_probability_S": parallel.sum_over_context(sums_2S[0])}
