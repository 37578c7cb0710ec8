"""The learning rate as a pure function of the step: linear warmup, then cosine, linear, late (WSD) or no decay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

DecayStyle = Literal["cosine", "linear", "constant", "WSD"]
LateStyle = Literal["exponential", "linear", "cosine", "minus_sqrt"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Peak, floor and start of the rate; warmup and decay in optimizer steps (a fraction of a step is allowed).

    late_steps, late_style: the fall at the end of a WSD schedule.
    """

    peak: float
    floor: float
    warmup_steps: float
    decay_steps: float
    style: DecayStyle
    late_steps: int = 0
    late_style: LateStyle = "exponential"
    start: float = 0.0


def learning_rate(schedule: Schedule, completed_steps: int) -> float:
    """The rate for the step that follows `completed_steps` steps.

    Warmup rises from the start; the decay runs from the end of warmup to `decay_steps` and stays at the floor after it.
    Source: Megatron-LM's OptimizerParamScheduler, which counts in samples; steps give the same ratios.
    """
    if completed_steps < schedule.warmup_steps:
        return schedule.start + (schedule.peak - schedule.start) * completed_steps / schedule.warmup_steps
    if schedule.style == "constant":
        return schedule.peak
    if completed_steps > schedule.decay_steps:
        return schedule.floor
    return schedule.floor + (schedule.peak - schedule.floor) * _share(schedule, completed_steps)


def _share(schedule: Schedule, completed_steps: int) -> float:
    """Position between floor (0) and peak (1)."""
    if schedule.style == "WSD":
        late = completed_steps - (schedule.decay_steps - schedule.late_steps)
        return _late_share(schedule.late_style, late / schedule.late_steps) if late > 0 else 1.0
    decay_length = schedule.decay_steps - schedule.warmup_steps
    ratio = (completed_steps - schedule.warmup_steps) / decay_length if decay_length > 0 else 1.0
    return (1 + math.cos(math.pi * ratio)) / 2 if schedule.style == "cosine" else 1 - ratio


def _late_share(style: LateStyle, ratio: float) -> float:
    match style:
        case "linear":
            return 1 - ratio
        case "cosine":
            return (1 + math.cos(math.pi * ratio)) / 2
        case "exponential":
            return 2 * math.pow(0.5, ratio) - 1
        case "minus_sqrt":
            return 1 - math.sqrt(ratio)
