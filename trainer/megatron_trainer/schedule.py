"""The learning rate as a pure function of the step: linear warmup, then cosine, linear or no decay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

DecayStyle = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Peak and floor of the rate; warmup and decay in optimizer steps (a fraction of a step is allowed)."""

    peak: float
    floor: float
    warmup_steps: float
    decay_steps: float
    style: DecayStyle


def learning_rate(schedule: Schedule, completed_steps: int) -> float:
    """The rate for the step that follows `completed_steps` steps.

    Warmup rises from 0; the decay runs from the end of warmup to `decay_steps` and stays at the floor after it.
    Source: Megatron-LM's OptimizerParamScheduler, which counts in samples; steps give the same ratios.
    """
    if completed_steps < schedule.warmup_steps:
        return schedule.peak * completed_steps / schedule.warmup_steps
    if schedule.style == "constant":
        return schedule.peak
    if completed_steps > schedule.decay_steps:
        return schedule.floor
    decay_length = schedule.decay_steps - schedule.warmup_steps
    ratio = (completed_steps - schedule.warmup_steps) / decay_length if decay_length > 0 else 1.0
    coefficient = (1 + math.cos(math.pi * ratio)) / 2 if schedule.style == "cosine" else 1 - ratio
    return schedule.floor + (schedule.peak - schedule.floor) * coefficient
