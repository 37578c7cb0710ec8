"""Splitting, repeating, mixing and shuffling: from the rows of each dataset to the items of a run, by index only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from megatron_trainer.data.dataset import Items, concatenate
from megatron_trainer.data.ordering.interleave import interleave


def split_off(items: Items, ratio: float, *, limit: int | None, generator: np.random.Generator) -> tuple[Items, Items]:
    """The items without, and the items of, a validation set of max(int(min(len, limit) * ratio), 1) items.

    Both keep their order. Source of the size: the argument reference, split_dataset_ratio.
    """
    size = max(int(min(len(items), limit or len(items)) * ratio), 1)
    chosen = np.zeros(len(items), dtype=np.bool_)
    chosen[generator.choice(len(items), size, replace=False)] = True
    return items.take(np.flatnonzero(~chosen)), items.take(np.flatnonzero(chosen))


def repeat(items: Items, times: float, *, generator: np.random.Generator | None) -> Items:
    """As many whole copies as fit into `times`, and a sample of items for the rest (the first ones, without
    generator).
    """
    copies = int(times)
    rest = round((times - copies) * len(items))
    drawn = np.arange(rest) if generator is None else generator.choice(len(items), rest, replace=False)
    return items.take(np.concatenate([np.tile(np.arange(len(items)), copies), drawn]))


def mix(
    parts: Sequence[Items],
    *,
    probabilities: Sequence[float] | None,
    stopping: Literal["first_exhausted", "all_exhausted"],
    generator: np.random.Generator,
) -> Items:
    """All parts concatenated, or interleaved if probabilities are given.

    Raises ValueError for probabilities that do not fit the parts.
    """
    whole = concatenate(parts)
    if probabilities is None:
        return whole
    sizes = [len(part) for part in parts]
    which, place = interleave(sizes, probabilities, stopping=stopping, generator=generator)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    return whole.take(first[which] + place)


def shuffled(items: Items, generator: np.random.Generator) -> Items:
    """The items in another order."""
    return items.take(generator.permutation(len(items)))
