"""Feeds the loop with global batches of this rank's micro-batches, on the device; resumable at any sample.

Ranks of one data-parallel index (tensor, pipeline, context) read the same micro-batches; nothing is communicated
between them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from megatron_trainer import parallel
from megatron_trainer.backend import Backend
from megatron_trainer.data.collate import RowShape
from megatron_trainer.data.loader import micro_batches
from megatron_trainer.data.ordering.sample import Sampler, Segment, WholePass
from megatron_trainer.data.prepare import Prepared
from megatron_trainer.data.streaming.items import Stream, StreamSampler
from megatron_trainer.data.values import Indexed, MicroBatch
from megatron_trainer.state import TrainState
from megatron_trainjob.args import derive
from megatron_trainjob.args.tree import TrainArgs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Items to train on (dataset or stream) and how they form global batches. sampler: at the start of the data."""

    items: Indexed | Stream
    sampler: Sampler | StreamSampler
    shape: RowShape
    num_micro_batches: int
    num_workers: int

    @property
    def step(self) -> Segment:
        """Number of samples in one global batch, over all ranks."""
        micro, ranks = self.sampler.micro_batch_size, self.sampler.data_parallel_size
        return Segment(
            num_samples=micro * ranks * self.num_micro_batches, micro_batch_size=micro, data_parallel_size=ranks
        )

    def completed_epochs(self, state: TrainState) -> int:
        """Number of complete epochs of stored data in this state."""
        assert isinstance(self.sampler, Sampler)
        sampler = replace(self.sampler, consumed_samples=state.consumed_samples, history=state.history)
        return sampler.completed_epochs

    def global_batches(
        self, consumed_samples: int, history: tuple[Segment, ...], backend: Backend
    ) -> Iterator[list[MicroBatch]]:
        """Yields this rank's micro-batches of each global batch, starting at the given sample.

        history: the layouts in which the samples before it were read. Ends when the sampler ends, at the same batch on
        all ranks.
        """
        sampler = replace(self.sampler, consumed_samples=consumed_samples, history=history)
        one_by_one = _micro_batches(self, sampler, backend)
        while True:
            batches = [on_device(batch, backend.device) for batch in islice(one_by_one, self.num_micro_batches)]
            if not self._are_enough_everywhere(batches, backend):
                return
            yield batches

    def _are_enough_everywhere(self, batches: Sequence[MicroBatch], backend: Backend) -> bool:
        """Whether all ranks have their part of a global batch; with a stream, some ranks may run out earlier."""
        is_full = len(batches) == self.num_micro_batches
        if isinstance(self.sampler, StreamSampler) and self.sampler.num_epochs is not None:
            return parallel.is_true_everywhere(is_full, backend)
        return is_full


@dataclass(frozen=True, kw_only=True)
class EvaluationFeed:
    """Validation items, each once and in order, as global batches of which the last may be incomplete."""

    items: Indexed
    order: WholePass
    shape: RowShape
    num_micro_batches: int
    num_workers: int

    def num_items_in(self, num_global_batches: int) -> int:
        """Items that all ranks together read in the given number of global batches, at most all."""
        return min(len(self.items), num_global_batches * self.num_micro_batches * self.order.items_per_step)

    def global_batches(self, backend: Backend) -> Iterator[list[MicroBatch]]:
        """Yields this rank's micro-batches of each global batch, equally many on every rank."""
        one_by_one = _micro_batches(self, self.order, backend)
        while batches := [on_device(batch, backend.device) for batch in islice(one_by_one, self.num_micro_batches)]:
            yield batches


def _micro_batches(
    feed: Feed | EvaluationFeed, order: Sampler | WholePass | StreamSampler, backend: Backend
) -> Iterator[MicroBatch]:
    """In memory from which copies to a GPU need not wait."""
    is_gpu = backend.device.type == "cuda"
    return micro_batches(feed.items, order, shape=feed.shape, num_workers=feed.num_workers, pins=is_gpu)


def feeds(args: TrainArgs, data: Prepared, shape: RowShape) -> tuple[Feed, EvaluationFeed | None]:
    """The feed for training, at its start, and the one for evaluation if there is any."""
    world_size = dist.get_world_size()
    num_micro_batches = derive.num_micro_batches(args, world_size)
    num_workers = derive.num_workers(args)
    train = Feed(
        items=data.train,
        sampler=train_order(args, data, world_size),
        shape=shape,
        num_micro_batches=num_micro_batches,
        num_workers=num_workers,
    )
    if not data.validation:
        return train, None
    in_order = WholePass(
        num_items=len(data.validation),
        micro_batch_size=args.micro_batch_size,
        data_parallel_rank=parallel.coordinates().data,
        data_parallel_size=derive.data_parallel_size(args, world_size),
    )
    validation = EvaluationFeed(
        items=data.validation,
        order=in_order,
        shape=shape,
        num_micro_batches=num_micro_batches,
        num_workers=num_workers,
    )
    return train, validation


def tell_unread(validation: EvaluationFeed | None, eval_iters: int) -> None:
    """Logs how much of the validation set the given number of steps leaves out."""
    if validation is None or eval_iters == 0:
        return
    read, rows = validation.num_items_in(eval_iters), len(validation.items)
    if read < rows:
        logger.warning("eval_iters=%d reads %d of the %d rows of the validation set", eval_iters, read, rows)


def train_order(args: TrainArgs, data: Prepared, world_size: int) -> Sampler | StreamSampler:
    """The order in which this rank reads the data, from its start."""
    data_parallel_rank = parallel.coordinates().data
    data_parallel_size = derive.data_parallel_size(args, world_size)
    if data.num_items is None:
        return StreamSampler(
            micro_batch_size=args.micro_batch_size,
            data_parallel_rank=data_parallel_rank,
            data_parallel_size=data_parallel_size,
            num_epochs=args.max_epochs,
        )
    lengths = torch.from_numpy(data.lengths) if args.group_by_length and data.lengths is not None else None
    return Sampler(
        num_items=data.num_items,
        micro_batch_size=args.micro_batch_size,
        data_parallel_rank=data_parallel_rank,
        data_parallel_size=data_parallel_size,
        dataloader_type="single" if args.dataloader_type == "single" else "cyclic",  # external is a stream's
        num_epochs=args.max_epochs,
        lengths=lengths,
    )


def on_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The micro-batch with its tensors on the device; cu_seqlens too, which kernels read there."""
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    moved: dict[str, Any] = {name: t.to(device, non_blocking=True) for name, t in tensors.items() if torch.is_tensor(t)}
    mismatched = None if batch.mismatched is None else on_device(batch.mismatched, device)
    return replace(batch, **moved, mismatched=mismatched)
