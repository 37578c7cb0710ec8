"""Which preference algorithm runs."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import arg


@dataclass(frozen=True, kw_only=True)
class Rlhf:
    """Which preference algorithm runs."""

    rlhf_type: Literal["dpo"] = arg(
        "dpo",
        "Preference algorithm.",
        applies_to=("rlhf",),
        status="works",
    )
