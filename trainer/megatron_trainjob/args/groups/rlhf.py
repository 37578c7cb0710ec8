"""Which preference algorithm runs."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import arg


@dataclass(frozen=True, kw_only=True)
class Rlhf:
    """Which preference algorithm runs."""

    rlhf_type: Literal["dpo", "kto"] = arg(
        "dpo",
        "Preference algorithm: dpo compares pairs of answers, kto judges each answer alone.",
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
