"""Finds a rank that takes far longer than the others for its own forward and backward passes, for minutes.

Seconds are a rank's own, up to where it first waits for the gradients of the others. Ranks of one pipeline, or of one
tensor-parallel group, wait for each other before that and so are slow together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median_low

THRESHOLD = 1.5
"""Times the median of all ranks."""
WINDOW_S = 60.0
NUM_WINDOWS = 3
"""So many in a row: samples differ in length, and nodes have bad moments."""
LEAST_STEP_S = 0.01


@dataclass(frozen=True, kw_only=True)
class SlowRank:
    """A rank, and how many times the median it takes."""

    rank: int
    ratio: float


@dataclass(kw_only=True)
class SlowRanks:
    """Adds up the ranks' seconds over windows of time. slow: the slowest rank that is slow for long enough, if any."""

    slow: SlowRank | None = None
    _sums: list[float] = field(default_factory=list)
    _elapsed_s: float = 0.0
    _num_steps: int = 0
    _in_a_row: dict[int, int] = field(default_factory=dict)

    def add(self, own_s: Sequence[float], step_s: float) -> bool:
        """Counts one step; whether `slow` has changed. own_s: of each rank."""
        self._sums = [total + own for total, own in zip(self._sums or [0.0] * len(own_s), own_s, strict=True)]
        self._elapsed_s, self._num_steps = self._elapsed_s + step_s, self._num_steps + 1
        if self._elapsed_s < WINDOW_S:
            return False
        before, self.slow = self.slow, self._judged()
        self._sums, self._elapsed_s, self._num_steps = [], 0.0, 0
        return (before and before.rank) != (self.slow and self.slow.rank)

    def _judged(self) -> SlowRank | None:
        usual = median_low(self._sums)
        if usual < LEAST_STEP_S * self._num_steps:
            self._in_a_row = {}
            return None
        ratios = {rank: total / usual for rank, total in enumerate(self._sums) if total > THRESHOLD * usual}
        self._in_a_row = {rank: self._in_a_row.get(rank, 0) + 1 for rank in ratios}
        lasting = [rank for rank, count in self._in_a_row.items() if count >= NUM_WINDOWS]
        slowest = max(lasting, key=ratios.__getitem__, default=None)
        return None if slowest is None else SlowRank(rank=slowest, ratio=round(ratios[slowest], 2))
