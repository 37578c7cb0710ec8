"""The nodes of a run, and files that travel between them over gloo, beside the collectives of training."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megatron_trainjob.checkpoint_folder import FileRecord

BLOCK_BYTES = 32 * 1024**2


class PeerFailure(Exception):
    """An action failed on one or several ranks. Equal on all of them."""


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Consecutive ranks share a node. group: all ranks, on gloo, for one thread at a time."""

    num_nodes: int
    group: dist.ProcessGroup

    @property
    def ranks_per_node(self) -> int:
        return dist.get_world_size() // self.num_nodes

    @property
    def node(self) -> int:
        """The node of this rank."""
        return self.of(dist.get_rank())

    @property
    def is_first_of_node(self) -> bool:
        """Whether this rank is the one that publishes and removes on its node."""
        return dist.get_rank() % self.ranks_per_node == 0

    def of(self, rank: int) -> int:
        """The node of a rank."""
        return rank // self.ranks_per_node

    def first_rank(self, node: int) -> int:
        """The first rank of a node."""
        return node * self.ranks_per_node

    def peer(self, steps: int) -> int:
        """The rank with the same place on the node so many nodes further, around the ring."""
        return (dist.get_rank() + steps * self.ranks_per_node) % dist.get_world_size()

    def gathered[Value](self, own: Value) -> list[Value]:
        """The values of all ranks. Collective."""
        found = [own] * dist.get_world_size()
        dist.all_gather_object(found, own, group=self.group)
        return found

    def from_rank[Value](self, source: int, value: Value | None) -> Value:
        """The value of one rank. Collective."""
        held = [value]
        dist.broadcast_object_list(held, src=source, group=self.group)
        assert held[0] is not None
        return held[0]

    def agreed[Result](self, action: Callable[[], Result]) -> Result:
        """The action's result. Collective; the action is not, unless it never raises before its last collective.

        Raises:
            PeerFailure: it failed on a rank, so that no rank waits for one that gave up.
        """
        problem = ""
        try:
            result = action()
        except (Exception, CheckpointException) as err:  # noqa: BLE001 - the other ranks have to hear of it
            problem = f"{type(err).__name__}: {err}"
        problems = [f"rank {rank}: {text}" for rank, text in enumerate(self.gathered(problem)) if text]
        if problems:
            raise PeerFailure("; ".join(problems))
        return result

    def exchange(
        self, own: Mapping[Path, FileRecord], target: int, theirs: Mapping[Path, FileRecord], source: int
    ) -> list[str]:
        """Sends files to one rank while others are received from another; returns what went wrong on this rank.

        theirs: where each of the source's files is written, in the order in which it sends them. Never raises for a
        file: the other ranks count on every block.
        """
        problems: list[str] = []
        outgoing = (block for path, each in own.items() for block in _blocks(path, 0, each.size_bytes, problems))
        incoming = _Incoming(theirs, problems)
        for block, memory in zip_longest(outgoing, incoming.blocks()):
            request = None if block is None else dist.isend(block, dst=target, group=self.group)
            if memory is not None:
                dist.recv(memory, src=source, group=self.group)
            if request is not None:
                request.wait()
        return problems

    def send(self, path: Path, ranges: Sequence[tuple[int, int]], target: int) -> str:
        """Sends parts of a file, each (offset, length) in bytes; returns what went wrong with the file, or ""."""
        problems: list[str] = []
        for offset, length in ranges:
            for block in _blocks(path, offset, length, problems):
                dist.send(block, dst=target, group=self.group)
        return next(iter(problems), "")

    def receive(self, path: Path, ranges: Sequence[tuple[int, int]], source: int) -> str:
        """Receives the same parts into the file, which has holes between them; returns what went wrong, or ""."""
        file, problem = _opened(path, "r+b" if path.exists() else "w+b")
        for offset, length in ranges:
            for start in range(0, length, BLOCK_BYTES):
                memory = torch.empty(min(BLOCK_BYTES, length - start), dtype=torch.uint8)
                dist.recv(memory, src=source, group=self.group)
                problem = problem or _written(file, memory, offset + start)
        return problem or _closed(file)


class _Incoming:
    """Files that arrive in blocks. A write that fails is remembered: the sender counts on every block's being taken."""

    def __init__(self, files: Mapping[Path, FileRecord], problems: list[str]) -> None:
        self._files, self._problems = files, problems

    def blocks(self) -> Iterator[torch.Tensor]:
        """Memory for each block; what was received into it is written when the next one is requested."""
        for path, record in self._files.items():
            checksum = 0
            file, problem = _opened(path, "wb")
            for start in range(0, record.size_bytes, BLOCK_BYTES):
                memory = torch.empty(min(BLOCK_BYTES, record.size_bytes - start), dtype=torch.uint8)
                yield memory
                checksum = zlib.crc32(memory.numpy(), checksum)
                problem = problem or _written(file, memory, start)
            problem = problem or _closed(file)
            if not problem and f"{checksum:08x}" != record.crc32:
                problem = f"{path} arrived damaged"
            if problem:
                self._problems.append(problem)


def _opened(path: Path, mode: str) -> tuple[IO[bytes] | None, str]:
    try:
        return path.open(mode), ""
    except OSError as err:
        return None, str(err)


def _written(file: IO[bytes] | None, memory: torch.Tensor, offset: int) -> str:
    try:
        if file is not None:
            file.seek(offset)
            file.write(memory.numpy())
    except OSError as err:
        return str(err)
    return ""


def _closed(file: IO[bytes] | None) -> str:
    try:
        if file is not None:
            file.close()
    except OSError as err:
        return str(err)
    return ""


def _blocks(path: Path, offset: int, length: int, problems: list[str]) -> Iterator[torch.Tensor]:
    """The bytes of a part of a file; zeros where it cannot be read or has become shorter, which is a problem."""
    file, problem = _opened(path, "rb")
    for start in range(0, length, BLOCK_BYTES):
        memory = torch.zeros(min(BLOCK_BYTES, length - start), dtype=torch.uint8)
        problem = problem or _read(file, memory, offset + start)
        yield memory
    problem = problem or _closed(file)
    if problem:
        problems.append(problem)


def _read(file: IO[bytes] | None, memory: torch.Tensor, offset: int) -> str:
    try:
        if file is not None:
            file.seek(offset)
            if (count := file.readinto(memory.numpy())) < memory.numel():  # type: ignore[attr-defined]
                return f"{file.name} ends at byte {offset + count}"
    except OSError as err:
        return str(err)
    return ""
