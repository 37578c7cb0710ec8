"""Megatron's pipeline schedule over the micro-batches of this rank, with or without a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from megatron_trainer.data.values import MicroBatch

LossFunction = Callable[[Tensor], tuple[Any, ...]]
ForwardStep = Callable[[Iterator[MicroBatch], nn.Module], tuple[Tensor, LossFunction]]


def run_schedule(
    chunks: Sequence[nn.Module], forward_step: ForwardStep, batches: Sequence[MicroBatch], *, is_training: bool
) -> list[Mapping[str, Tensor]]:
    """Metrics of each micro-batch; an empty list on stages other than the last. Collective."""
    num_batches, batches = len(batches), batches if is_training else _filled(batches, chunks)
    iterators = [iter(batches) for _ in chunks]
    metrics: list[Mapping[str, Tensor]] = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if len(iterators) > 1 else iterators[0],
        model=list(chunks),
        num_microbatches=len(batches),
        seq_length=batches[0].tokens_BT.shape[1],
        micro_batch_size=batches[0].tokens_BT.shape[0],
        forward_only=not is_training,
    )
    return metrics[:num_batches]


def _filled(batches: Sequence[MicroBatch], chunks: Sequence[nn.Module]) -> Sequence[MicroBatch]:
    """The interleaved schedule needs a multiple of the number of stages: repeats the last micro-batch to fill up."""
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    missing = -len(batches) % stages if len(chunks) > 1 else 0
    return [*batches, *[batches[-1]] * missing]
