"""Which preference algorithm runs."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import arg


@dataclass(frozen=True, kw_only=True)
class Rlhf:
    """Which preference algorithm runs."""

    rlhf_type: Literal["dpo", "kto", "rm"] = arg(
        "dpo",
        "Preference algorithm: dpo compares pairs of answers, kto judges each answer alone, rm trains a reward model.",
        applies_to=("rlhf", "export"),
        essential=True,
        status="works",
    )
    center_rewards_coefficient: float | None = arg(
        None,
        "Weight in rm of the squared sum of both scores of a pair, which centers scores around 0; unset: off.",
        ge=0,
        applies_to=("rlhf",),
        status="works",
    )
    desirable_weight: float = arg(
        1.0,
        "Weight of the loss of desirable answers in kto.",
        ge=0,
        applies_to=("rlhf",),
        status="works",
    )
    undesirable_weight: float = arg(
        1.0,
        "Weight of the loss of undesirable answers in kto.",
        ge=0,
        applies_to=("rlhf",),
        status="works",
    )
