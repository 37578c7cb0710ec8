"""Losses of whole sequences: equal weight for every sequence of the global batch, however many a micro-batch holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_trainer import parallel
from megatron_trainer.data.values import MicroBatch


def with_shares(batches: Sequence[MicroBatch]) -> Sequence[MicroBatch]:
    """The micro-batches with loss shares that give all sequences of the global batch equal weight. Collective."""
    return _shared(batches, [batch.num_samples for batch in batches])


def with_shares_of_groups(batches: Sequence[MicroBatch]) -> Sequence[MicroBatch]:
    """The micro-batches with loss shares that give all groups of the global batch equal weight. Collective."""
    return _shared(batches, [len(batch.groups) for batch in batches])


def _shared(batches: Sequence[MicroBatch], counts: Sequence[int]) -> Sequence[MicroBatch]:
    own = torch.tensor([sum(counts)], device=batches[0].tokens_BT.device)
    dist.all_reduce(own, group=parallel_state.get_data_parallel_group())
    mean = own.item() / (len(batches) * parallel.coordinates().data_size)
    return [replace(batch, loss_share=count / mean) for batch, count in zip(batches, counts, strict=True)]
