"""Which dataset items each data-parallel rank reads, in which order: epochs, shuffling, and resuming at any sample.

The order of the reference: an epoch holds the items that fill whole micro-batches of all ranks, and epoch e is
shuffled by the generator of seed e. With 7 items, micro-batches of 1 and 2 ranks, an epoch has 6 items:
    sharded      rank 0 shuffles items 0 1 2, rank 1 shuffles items 3 4 5
    unsharded    all 6 are shuffled together and assigned to the ranks in turn
A run that resumes with other micro-batches or another number of ranks first reads the rest of its epoch.

Grouped by length, the order differs: the items are shuffled together, sorted by length within windows of WINDOW_STEPS
micro-steps, and the micro-steps are shuffled: items that the ranks read together have similar lengths. The micro-step
with the longest item comes first, so that running out of memory shows at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

WINDOW_STEPS = 50
"""Number of micro-steps whose items are sorted by length together: more would make the epoch less random."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a run with one layout: the number of items that all ranks together read in it."""

    num_samples: int
    micro_batch_size: int
    data_parallel_size: int

    @property
    def items_per_step(self) -> int:
        """Items that all ranks together read for one micro-batch each."""
        return self.micro_batch_size * self.data_parallel_size

    def has_layout_of(self, other: Segment) -> bool:
        """Whether items were distributed in the same way."""
        return (self.micro_batch_size, self.data_parallel_size) == (other.micro_batch_size, other.data_parallel_size)


def extended(history: Sequence[Segment], segment: Segment) -> tuple[Segment, ...]:
    """The history of a run after one more segment; consecutive segments of the same layout are merged."""
    if not history:
        return (segment,)
    *earlier, last = history
    if not last.has_layout_of(segment):
        return (*history, segment)
    return (*earlier, replace(last, num_samples=last.num_samples + segment.num_samples))


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """An endless (cyclic) or single pass over item indices, for one data-parallel rank.

    consumed_samples: items that all ranks together read since the start of the run; iteration continues there.
    history: the segments of the run so far. The rest of consumed_samples was read in this layout, as was the last
    segment if it has the same layout.
    data_sharding: whether each rank owns a contiguous block of the dataset and shuffles inside it.
    num_epochs: passes after which a cyclic iteration ends; None means it never ends.
    lengths: tokens of each item, int64[num_items], if items of similar length are read together, by ranks in turn.
    """

    num_items: int
    micro_batch_size: int
    data_parallel_rank: int
    data_parallel_size: int
    consumed_samples: int = 0
    history: tuple[Segment, ...] = ()
    dataloader_type: Literal["single", "cyclic"] = "cyclic"
    data_sharding: bool = True
    num_epochs: int | None = None
    lengths: Tensor | None = None

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
        """Yields the indices of each micro-batch."""
        place = self._place()
        while self._has_epoch(place.epoch):
            order = self._dealt(place, self._segment(0))[self.data_parallel_rank].tolist()
            for first in range(place.offset // self.data_parallel_size, len(order), self.micro_batch_size):
                yield order[first : first + self.micro_batch_size]
            place = _Place(epoch=place.epoch + 1, left=torch.arange(self.num_items), offset=0)

    @property
    def completed_epochs(self) -> int:
        """Number of complete epochs at consumed_samples."""
        return self._place().epoch

    @property
    def num_left(self) -> int | None:
        """Items between consumed_samples and the end of num_epochs, over all ranks; None without an end."""
        if self.num_epochs is None:
            return None
        place, step = self._place(), self.items_per_step
        of_this_epoch = len(place.left) // step * step - place.offset
        return max(0, of_this_epoch + (self.num_epochs - place.epoch - 1) * self.items_per_epoch)

    def _place(self) -> _Place:
        """The position of the run at consumed_samples."""
        place = _Place(epoch=0, left=torch.arange(self.num_items), offset=0)
        earlier = self._earlier_layouts()
        for segment in earlier:
            place = self._read_out(self._advanced(place, segment), segment)
        read = self.consumed_samples - sum(segment.num_samples for segment in earlier)
        return self._advanced(place, self._segment(read))

    def _earlier_layouts(self) -> tuple[Segment, ...]:
        if self.history and self.history[-1].has_layout_of(self._segment(0)):
            return self.history[:-1]
        return self.history

    def _segment(self, num_samples: int) -> Segment:
        return Segment(
            num_samples=num_samples,
            micro_batch_size=self.micro_batch_size,
            data_parallel_size=self.data_parallel_size,
        )

    def _advanced(self, place: _Place, segment: Segment) -> _Place:
        """The position of the run after a segment that started at `place`, at the beginning of an order."""
        step = segment.items_per_step
        rest = len(place.left) // step * step
        if segment.num_samples < rest:
            return _Place(epoch=place.epoch, left=place.left, offset=segment.num_samples)
        epochs, offset = divmod(segment.num_samples - rest, self.num_items // step * step)
        return _Place(epoch=place.epoch + 1 + epochs, left=torch.arange(self.num_items), offset=offset)

    def _read_out(self, place: _Place, segment: Segment) -> _Place:
        """The same position for another layout: only the unread items of this epoch are left."""
        read = self._dealt(place, segment)[:, : place.offset // segment.data_parallel_size]
        is_left = torch.zeros(self.num_items, dtype=torch.bool)
        is_left[place.left] = True
        is_left[read.flatten()] = False
        return _Place(epoch=place.epoch, left=is_left.nonzero().flatten(), offset=0)

    def _dealt(self, place: _Place, layout: Segment) -> Tensor:
        """The order of the items left in an epoch, int64[rank, item]."""
        ranks, step = layout.data_parallel_size, layout.items_per_step
        size = len(place.left) // step * step
        generator = torch.Generator().manual_seed(place.epoch)
        is_grouped = self.dataloader_type == "cyclic" and self.lengths is not None
        if self.dataloader_type == "cyclic" and self.data_sharding and not is_grouped:
            shuffled = torch.randperm(size // ranks, generator=generator)
            return place.left[:size].view(ranks, -1)[:, shuffled]
        order = place.left
        if self.dataloader_type == "cyclic":
            order = order[torch.randperm(len(order), generator=generator)]
        if is_grouped:
            order = self._grouped(order[:size], step, generator)
        dealt = order[:size].view(-1, ranks, layout.micro_batch_size)
        return dealt.transpose(0, 1).reshape(ranks, -1)

    def _grouped(self, order: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """The order with items of similar length in the same micro-step; its size is a multiple of the step."""
        assert self.lengths is not None
        windows = torch.split(order, WINDOW_STEPS * step)
        by_length = torch.cat([w[self.lengths[w].argsort(descending=True, stable=True)] for w in windows])
        steps = by_length.view(-1, step)[torch.randperm(len(order) // step, generator=generator)]
        longest = int(self.lengths[steps].amax(dim=1).argmax()) if len(steps) else 0
        return torch.cat([steps[longest : longest + 1], steps[:longest], steps[longest + 1 :]]).flatten()

    def _has_epoch(self, epoch: int) -> bool:
        last = 1 if self.dataloader_type == "single" else self.num_epochs
        return last is None or epoch < last


@dataclass(frozen=True, kw_only=True)
class WholePass:
    """Every item once, in order, for one data-parallel rank: the remainder is distributed over the ranks.

    5 items, micro-batches of 1 and 2 ranks: rank 0 reads 0, 2, 4; rank 1 reads 1, 3 and an empty micro-batch, because
    all ranks have to take the same number of passes through the model.
    """

    num_items: int
    micro_batch_size: int
    data_parallel_rank: int
    data_parallel_size: int

    @property
    def items_per_step(self) -> int:
        """Items that all ranks together read for one micro-batch each."""
        return self.micro_batch_size * self.data_parallel_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the indices of each micro-batch."""
        for first in range(0, self.num_items, self.items_per_step):
            items = range(first, min(first + self.items_per_step, self.num_items))
            each = -(-len(items) // self.data_parallel_size)
            yield list(items[self.data_parallel_rank * each : (self.data_parallel_rank + 1) * each])


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A position in a run: the number of items read from the order of the items left in this epoch."""

    epoch: int
    left: Tensor
    offset: int
