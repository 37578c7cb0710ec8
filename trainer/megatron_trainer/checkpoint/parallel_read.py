"""Reads the tensors of a checkpoint in several threads, while the main thread copies them to where they belong.

torch's reader takes one tensor after the other, each into memory that is new to the process: a fraction of what memory
or a fast volume delivers, and most of the time between a failure and the next step.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

NUM_THREADS: Final = 4
MOST_BYTES: Final = 1 << 30
"""Of tensors that are being read or wait for the main thread; a larger one is read alone."""


@contextlib.contextmanager
def in_threads() -> Iterator[None]:
    """Context in which torch's reader of distributed checkpoints reads so; what is loaded is the same."""
    original = FileSystemReader.read_data

    def read_data(self: FileSystemReader, plan: LoadPlan, planner: LoadPlanner) -> torch.futures.Future[None]:
        tensors = [item for item in plan.items if _is_plain(self, item)]
        for item, tensor in _read_ahead(self, sorted(tensors, key=lambda item: _place(self, item))):
            _take(planner, item, tensor)
        return original(self, replace(plan, items=[item for item in plan.items if not _is_plain(self, item)]), planner)

    FileSystemReader.read_data = read_data  # type: ignore[method-assign]
    try:
        yield
    finally:
        FileSystemReader.read_data = original  # type: ignore[method-assign]


def _is_plain(reader: FileSystemReader, item: ReadItem) -> bool:
    """Whether it is a tensor that lies in its file as torch.save writes it."""
    return item.type == LoadItemType.TENSOR and not reader.storage_data[item.storage_index].transform_descriptors


def _place(reader: FileSystemReader, item: ReadItem) -> tuple[str, int]:
    stored = reader.storage_data[item.storage_index]
    return stored.relative_path, stored.offset


def _read_ahead(reader: FileSystemReader, items: Sequence[ReadItem]) -> Iterator[tuple[ReadItem, torch.Tensor]]:
    """The stored tensors in this order."""
    pending: deque[tuple[ReadItem, Future[torch.Tensor], int]] = deque()
    num_bytes = 0
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for item in items:
            own = reader.storage_data[item.storage_index].length
            while pending and num_bytes + own > MOST_BYTES:
                first, future, done = pending.popleft()
                yield first, future.result()
                num_bytes -= done
            pending.append((item, pool.submit(_read, reader, item), own))
            num_bytes += own
        while pending:
            first, future, _ = pending.popleft()
            yield first, future.result()


def _read(reader: FileSystemReader, item: ReadItem) -> torch.Tensor:
    """The part of a stored tensor that the item wants. Each thread has a file of its own: one has one position."""
    stored = reader.storage_data[item.storage_index]
    with Path(reader.path, stored.relative_path).open("rb", buffering=0) as file:
        tensor = torch.load(reader._slice_file(file, stored), map_location="cpu", weights_only=True)
    return narrow_tensor_by_index(tensor, item.storage_offsets, item.lengths)


def _take(planner: LoadPlanner, item: ReadItem, tensor: torch.Tensor) -> None:
    target = planner.resolve_tensor(item).detach()
    if target.size() != tensor.size():
        raise ValueError(f"{item.storage_index} has the shape {tuple(tensor.size())}, expected {tuple(target.size())}")
    target.copy_(tensor)
    planner.commit_tensor(item, target)
