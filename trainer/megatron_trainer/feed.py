"""Feeds the loop: global batches of this rank's micro-batches, from any point of the data, on the device.

Ranks of one data-parallel index (tensor, pipeline, context) read the same micro-batches; nothing is sent between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice

import torch
from torch.utils.data import DataLoader

from megatron_trainer.backend import Backend
from megatron_trainer.data.collate import RowShape, collate
from megatron_trainer.data.sample import Sampler
from megatron_trainer.data.values import Item, MicroBatch


@dataclass(frozen=True, kw_only=True)
class Feed:
    """A set of items and how they become global batches. sampler: at the start of the data."""

    items: Sequence[Item]
    sampler: Sampler
    shape: RowShape
    num_micro_batches: int
    num_workers: int

    def global_batches(self, consumed_samples: int, backend: Backend) -> Iterator[list[MicroBatch]]:
        """This rank's micro-batches of one global batch after the other, from the given sample on.

        Ends when the sampler ends; a last global batch that is not full is dropped.
        """
        loader = DataLoader(
            self.items,  # type: ignore[arg-type]  # any sized sequence will do
            batch_sampler=replace(self.sampler, consumed_samples=consumed_samples),  # type: ignore[arg-type]
            collate_fn=partial(collate, shape=self.shape),
            num_workers=self.num_workers,
            # The loader draws a seed for its workers; from the global generator, a resumed run would draw once more
            # than an uninterrupted one and its dropout would differ from there on.
            generator=torch.Generator(),
            # A forked worker shares the mapped data and costs nothing to start; any other way imports all of torch.
            multiprocessing_context="fork" if self.num_workers else None,
        )
        micro_batches = iter(loader)
        while True:
            batches = [on_device(b, backend.device) for b in islice(micro_batches, self.num_micro_batches)]
            if len(batches) < self.num_micro_batches:
                return
            yield batches


def on_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The micro-batch with its tensors on the device; cu_seqlens too, which kernels read there."""
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    moved = {name: t.to(device, non_blocking=True) for name, t in tensors.items() if torch.is_tensor(t)}
    return replace(batch, **moved)
