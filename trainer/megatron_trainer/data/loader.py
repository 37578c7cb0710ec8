"""Yields micro-batches from items of any kind: read in background processes, resumable at any sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from megatron_trainer.data.collate import RowShape, collate
from megatron_trainer.data.ordering.sample import Sampler, WholePass
from megatron_trainer.data.streaming.items import Stream, StreamSampler, micro_batches_of
from megatron_trainer.data.values import Indexed, MicroBatch
from megatron_trainer.failure import TrainingError
from megatron_trainer.orphans import die_with_parent
from megatron_trainjob.exit_codes import ExitCode


def micro_batches(
    items: Indexed | Stream,
    sampler: Sampler | WholePass | StreamSampler,
    *,
    shape: RowShape,
    num_workers: int,
    pins: bool = False,
) -> Iterator[MicroBatch]:
    """Yields this rank's micro-batches, starting at sampler.consumed_samples, until the sampler ends.

    num_workers: processes that read ahead (0 reads in this one); a stream uses at most one. pins: whether the
    micro-batches are in pinned memory; with workers a thread receives them there, while this one starts kernels.

    Raises TrainingError if the data cannot be used, in whichever process it is read.
    """
    if isinstance(items, Stream):
        assert isinstance(sampler, StreamSampler)
        dataset: Any = _StreamedBatches(items, sampler, shape)
        options: dict[str, Any] = {"batch_size": None}
        num_workers = min(num_workers, 1)
    else:
        dataset = _SampledBatches(items, shape)
        options = {"batch_sampler": sampler, "collate_fn": _as_it_is}
    # The loader draws a seed for its workers; from the global generator, a resumed run would draw once more than an
    # uninterrupted one and its dropout would differ from there on.
    options |= {"generator": torch.Generator(), "pin_memory": pins}
    if num_workers:
        # A forked worker shares the mapped data and starts at once; any other start method imports all of torch. It
        # never touches the device.
        options |= {"num_workers": num_workers, "multiprocessing_context": "fork", "prefetch_factor": 4}
        options["worker_init_fn"] = _start_worker
    return (_unless_failed(batch) for batch in DataLoader(dataset, **options))


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """A TrainingError passed from a worker: an exception would arrive without its exit code."""

    exit_code: ExitCode
    message: str


class _StreamedBatches(IterableDataset[MicroBatch | _Failure]):
    """The micro-batches of a stream, as an iterable dataset for DataLoader."""

    def __init__(self, stream: Stream, sampler: StreamSampler, shape: RowShape) -> None:
        self._stream, self._sampler, self._shape = stream, sampler, shape

    def __iter__(self) -> Iterator[MicroBatch | _Failure]:
        try:
            for items in micro_batches_of(self._stream, self._sampler):
                yield collate(items, self._shape)
        except TrainingError as err:
            yield _Failure(exit_code=err.exit_code, message=str(err))


class _SampledBatches(Dataset[MicroBatch | _Failure]):
    """The micro-batch for any list of indices, as a map-style dataset for DataLoader."""

    def __init__(self, items: Indexed, shape: RowShape) -> None:
        self._items, self._shape = items, shape

    def __getitems__(self, indices: list[int]) -> MicroBatch | _Failure:
        try:
            return collate([self._items[index] for index in indices], self._shape)
        except TrainingError as err:
            return _Failure(exit_code=err.exit_code, message=str(err))


def _start_worker(_index: int) -> None:
    """A worker holds the socket at which rank 0 listens: orphaned, it would keep the port from the next rank 0."""
    die_with_parent()


def _as_it_is(batch: MicroBatch | _Failure) -> MicroBatch | _Failure:
    return batch


def _unless_failed(batch: MicroBatch | _Failure) -> MicroBatch:
    if isinstance(batch, _Failure):
        raise TrainingError(batch.exit_code, batch.message)
    return batch
