"""Which dataset items each data-parallel rank reads, in which order: epochs, shuffling, and resuming anywhere.

The order of the reference: an epoch holds the items that fill whole micro-batches of all ranks, and epoch e is
shuffled by the generator of seed e. With 7 items, micro-batches of 1 and 2 ranks, an epoch has 6 items:
    sharded      rank 0 shuffles items 0 1 2, rank 1 shuffles items 3 4 5
    unsharded    all 6 are shuffled together and dealt to the ranks in turn
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """An endless (cyclic) or single pass over item indices, for one data-parallel rank.

    consumed_samples: items that all ranks together read before; the iteration goes on right after them.
    data_sharding: whether each rank owns a contiguous block of the dataset and shuffles inside it.
    num_epochs: passes after which a cyclic iteration ends; None means it never ends.
    """

    num_items: int
    micro_batch_size: int
    data_parallel_rank: int
    data_parallel_size: int
    consumed_samples: int = 0
    dataloader_type: Literal["single", "cyclic"] = "cyclic"
    data_sharding: bool = True
    num_epochs: int | None = None

    def __post_init__(self) -> None:
        if self.items_per_epoch == 0:
            raise ValueError(
                f"{self.num_items} items do not fill one micro-batch on each of {self.data_parallel_size} "
                f"data-parallel ranks ({self.items_per_step} items); use fewer ranks, a smaller micro_batch_size "
                "or more data"
            )

    @property
    def items_per_step(self) -> int:
        """Items that all ranks together read for one micro-batch each."""
        return self.micro_batch_size * self.data_parallel_size

    @property
    def items_per_epoch(self) -> int:
        """Items of an epoch: as many as fill whole micro-batches on every rank."""
        return self.num_items // self.items_per_step * self.items_per_step

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of one micro-batch after the other."""
        epoch, offset = divmod(self.consumed_samples, self.items_per_epoch)
        while self._has_epoch(epoch):
            order = self.order(epoch)
            start = offset // self.data_parallel_size
            for first in range(start, len(order), self.micro_batch_size):
                yield order[first : first + self.micro_batch_size]
            epoch, offset = epoch + 1, 0

    def order(self, epoch: int) -> list[int]:
        """All indices that this rank reads in an epoch, in order."""
        if self.dataloader_type == "single":
            return self._deal(torch.arange(self.items_per_epoch))
        generator = torch.Generator().manual_seed(epoch)
        if not self.data_sharding:
            return self._deal(torch.randperm(self.num_items, generator=generator)[: self.items_per_epoch])
        block = self.items_per_epoch // self.data_parallel_size
        shuffled = torch.randperm(block, generator=generator)
        return (shuffled + self.data_parallel_rank * block).tolist()

    def _deal(self, order: torch.Tensor) -> list[int]:
        """This rank's share of a common order: micro-batches go to the ranks in turn."""
        dealt = order.view(-1, self.data_parallel_size, self.micro_batch_size)
        return dealt[:, self.data_parallel_rank].flatten().tolist()

    def _has_epoch(self, epoch: int) -> bool:
        last = 1 if self.dataloader_type == "single" else self.num_epochs
        return last is None or epoch < last
