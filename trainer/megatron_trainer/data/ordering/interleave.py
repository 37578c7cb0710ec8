"""Mixing several datasets by probability, item by item. Pure arithmetic on counts, without items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray


def interleave(
    sizes: Sequence[int],
    probabilities: Sequence[float],
    *,
    stopping: Literal["first_exhausted", "all_exhausted"],
    generator: np.random.Generator,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """For each position of the mixture, the dataset and the item's index in it.

    Each dataset is read cyclically. The mixture ends when the first dataset (or, with all_exhausted, the last one) is
    exhausted. Probabilities are normalized to a sum of 1.

    Raises ValueError when the counts differ, a probability is negative, or one that is 0 could never be exhausted.
    """
    shares = np.asarray(probabilities, dtype=np.float64)
    if len(shares) != len(sizes):
        raise ValueError(f"{len(shares)} probabilities for {len(sizes)} datasets; use one for each")
    if (shares < 0).any() or (stopping == "all_exhausted" and (shares == 0).any()) or shares.sum() == 0:
        raise ValueError("each probability must be above 0")
    needed = np.asarray(sizes, dtype=np.int64)
    which = np.empty(0, dtype=np.int32)
    counts = np.zeros((0, len(sizes)), dtype=np.int64)
    while len(counts) == 0 or not _is_over(counts[-1], needed, stopping):
        drawn = generator.choice(len(sizes), size=max(1024, int(needed.sum())), p=shares / shares.sum())
        which = np.concatenate([which, drawn.astype(np.int32)])
        counts = np.cumsum(which[:, None] == np.arange(len(sizes)), axis=0)
    over = counts >= needed
    length = int(np.argmax(over.any(axis=1) if stopping == "first_exhausted" else over.all(axis=1))) + 1
    place = counts[np.arange(length), which[:length]] - 1
    return which[:length], place % needed[which[:length]]


def _is_over(counts: NDArray[np.int64], needed: NDArray[np.int64], stopping: str) -> bool:
    reached = counts >= needed
    return bool(reached.any() if stopping == "first_exhausted" else reached.all())
