"""One save as planned by Megatron, split into steps so that each rank's files can be written in the background.

Megatron's own async save starts a process per rank, takes 10 s for its queue, and hangs when the first rank cannot
write the index; here planning is collective, and writing and completing are plain calls on one rank.
"""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from megatron_trainer.backend import Backend
from megatron_trainer.checkpoint.contents import StateDict
from megatron_trainjob.checkpoint_folder import FileRecord, record_of

INDEX_FILES = (".metadata", "metadata.json")
Bucket = tuple[str, str, tuple[list[Any], Iterable[Any]]]
"""A file as Megatron's writer expects it: path, name, serialized objects, and tensors, which are iterated once."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one rank wrote: the location of each piece of the state, and its files."""

    results: Sequence[WriteResult]
    files: Mapping[str, FileRecord]


@dataclass(frozen=True, kw_only=True)
class Shards:
    """This rank's part of a save, to be written once. metadata: the index, on the first rank only."""

    folder: Path
    writer: FileSystemWriterAsync
    buckets: Sequence[Bucket]
    metadata: Metadata | None

    def write(self) -> Written:
        """Writes this rank's files durably and reads them back for their checksums. Not collective."""
        results: list[WriteResult] = []
        for index, bucket in enumerate(self.buckets):
            _, outcome = FileSystemWriterAsync.write_preloaded_data(
                [self.writer.transforms],
                local_proc_idx=index,
                write_bucket=bucket,
                results_queue=None,
                count_queue=None,
                use_fsync=True,
            )
            if isinstance(outcome, Exception):
                raise _first_cause(outcome) from outcome
            results.extend(outcome)
        return Written(results=results, files=_records(self.folder, [name for _, name, _ in self.buckets]))

    def complete(self, written: Sequence[Written]) -> dict[str, FileRecord]:
        """Writes the index of all ranks' parts, on the first rank; returns all files of the checkpoint."""
        self.writer.finish(self.metadata, [part.results for part in written])
        save_config(CheckpointingConfig("torch_dist", 1), str(self.folder))
        files = {name: record for part in written for name, record in part.files.items()}
        return {**files, **_records(self.folder, INDEX_FILES)}


class Staging:
    """Host memory for the copies of a background save, reused by the next save: allocating it takes longer than filling
    it. Overwrites the copies of the previous save.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._held: dict[MetadataIndex, torch.Tensor] = {}

    def copies(self, tensors: Iterable[tuple[WriteItem, torch.Tensor]]) -> list[tuple[WriteItem, torch.Tensor]]:
        """The tensors as they are now."""
        copied = [(item, self._memory(item.index, tensor).copy_(tensor, non_blocking=True)) for item, tensor in tensors]
        self._backend.synchronize()
        return copied

    def _memory(self, index: MetadataIndex, like: torch.Tensor) -> torch.Tensor:
        held = self._held.get(index)
        if held is None or held.shape != like.shape or held.dtype != like.dtype:
            # Only copies to pinned memory reach the bandwidth of the bus.
            held = torch.empty(like.shape, dtype=like.dtype, pin_memory=self._backend.name == "cuda")
            self._held[index] = held
        return held


class _Planner(TorchDistSaveShardedStrategy):  # type: ignore[misc]  # megatron-core has no types
    """Megatron's save strategy up to the plan; the following steps are our own."""

    planned: tuple[FileSystemWriterAsync, Metadata | None]

    def async_save(self, state: StateDict, folder: Path, async_strategy: str) -> AsyncRequest:
        for part in nested_values(state):
            if isinstance(part, ShardedTensor) and part.data is not None:
                part.data = _as_whole(part.data)
        return super().async_save(state, folder, async_strategy)

    def _get_save_and_finalize_callbacks(self, writer: Any, save_state_dict_ret: Any, _: str) -> AsyncRequest:  # noqa: ANN401
        self.planned = (writer, save_state_dict_ret[1])
        return AsyncRequest(None, (), [])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What this rank writes, with tensors that refer to the live ones. metadata: the index, on the first rank only."""

    folder: Path
    writer: FileSystemWriterAsync
    metadata: Metadata | None

    def shards(self, staging: Staging | None) -> Shards:
        """This rank's part of the save, to be taken once. Not collective.

        staging: holds copies of all tensors, so that training may modify them during the write; without it, GPU tensors
        are copied one at a time as they are written.
        """
        buckets = [
            (path, name, (objects, _one_by_one(tensors) if staging is None else staging.copies(tensors)))
            for path, name, (objects, tensors) in self.writer.write_buckets
        ]
        self.writer.write_buckets = None
        return Shards(folder=self.folder, writer=self.writer, buckets=buckets, metadata=self.metadata)


def plan(state: StateDict, folder: Path, *, num_files: int = 1) -> Plan:
    """Plans which rank writes which part of the state into the folder. Collective.

    num_files: of this rank.

    Raises:
        CheckpointException, WrongShards: on all ranks.
        Exception: any other on this rank alone, for which the others may be waiting inside.
    """
    # Megatron passes results through a queue to another process. It is not used here, so any queue will do.
    filesystem_async._results_queue = queue.Queue()
    planner = _Planner(thread_count=num_files)
    dist_checkpointing.save(state, str(folder), planner, async_sharded_save=True, async_strategy="mcore")
    writer, metadata = planner.planned
    return Plan(folder=folder, writer=writer, metadata=metadata)


def _as_whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that owns its memory, for a contiguous CPU view of a larger tensor.

    Megatron's writer clones every view of a larger tensor before it writes the first: gate and up of all layers, and
    the whole state of a distributed optimizer.
    """
    tensor = tensor.detach()
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return tensor
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    memory = torch.from_numpy(tensor.flatten().view(torch.uint8).numpy())
    return memory.view(tensor.dtype).view(tensor.shape)


def _one_by_one(tensors: Iterable[tuple[Any, torch.Tensor]]) -> Iterator[tuple[Any, torch.Tensor]]:
    """Yields each tensor on the CPU, until the next is requested."""
    for item, tensor in tensors:
        held = tensor.to("cpu")
        yield item, held
        if held is not tensor:
            held.untyped_storage().resize_(0)  # the writer still holds it while it requests the next


def _first_cause(error: BaseException) -> BaseException:
    """The original error: torch reports a full disk as a wrong archive position, raised during cleanup."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _records(folder: Path, names: Sequence[str]) -> dict[str, FileRecord]:
    return {name: record_of(folder / name) for name in names}
