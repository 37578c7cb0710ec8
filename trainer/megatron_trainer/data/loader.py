"""Micro-batches, one after the other, from items of any kind: read in background processes, from any point on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from megatron_trainer.data.collate import RowShape, collate
from megatron_trainer.data.sample import Sampler
from megatron_trainer.data.stream import Stream, StreamSampler, micro_batches_of
from megatron_trainer.data.values import Item, MicroBatch


def micro_batches(
    items: Sequence[Item] | Stream, sampler: Sampler | StreamSampler, *, shape: RowShape, num_workers: int
) -> Iterator[MicroBatch]:
    """This rank's micro-batches from sampler.consumed_samples on, until the sampler ends.

    num_workers: processes that read ahead (0 reads in this one); a stream uses at most one.
    """
    if isinstance(items, Stream):
        assert isinstance(sampler, StreamSampler)
        dataset: Any = _Batches(items, sampler, shape)
        options: dict[str, Any] = {"batch_size": None}
        num_workers = min(num_workers, 1)
    else:
        dataset = items
        options = {"batch_sampler": sampler, "collate_fn": partial(collate, shape=shape)}
    if num_workers:
        # A forked worker shares the mapped data and starts at once; any other way imports all of torch. It never
        # touches the device.
        options |= {"num_workers": num_workers, "multiprocessing_context": "fork", "prefetch_factor": 4}
    return iter(DataLoader(dataset, **options))


class _Batches(IterableDataset[MicroBatch]):
    """The micro-batches of a stream, in the form that a DataLoader iterates."""

    def __init__(self, stream: Stream, sampler: StreamSampler, shape: RowShape) -> None:
        self._stream, self._sampler, self._shape = stream, sampler, shape

    def __iter__(self) -> Iterator[MicroBatch]:
        return (collate(items, self._shape) for items in micro_batches_of(self._stream, self._sampler))
