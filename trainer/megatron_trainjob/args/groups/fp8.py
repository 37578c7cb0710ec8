"""Training with 8-bit floating point matrix products."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import arg


@dataclass(frozen=True, kw_only=True)
class Fp8:
    """Training with 8-bit floating point matrix products."""

    fp8_format: Literal["e4m3", "hybrid"] | None = arg(
        None,
        '8-bit format: e4m3 everywhere, or "hybrid" with e5m2 for gradients; unset: no FP8.',
        essential=True,
        status="works on GPU only",
    )
    fp8_recipe: Literal["tensorwise", "delayed", "mxfp8", "blockwise"] = arg(
        "delayed",
        "How FP8 scaling factors are computed.",
        status="works on GPU only",
        warned_choices={"mxfp8": "needs a Blackwell GPU (refused at the start on others); not tested yet"},
    )
    fp8_amax_history_len: int = arg(
        1024,
        "Length of the amax history of each tensor, in steps.",
        unit="steps",
        ge=1,
        status="works on GPU only",
    )
    fp8_amax_compute_algo: Literal["most_recent", "max"] = arg(
        "max",
        "How the scaling factor is derived from the history.",
        status="works on GPU only",
    )
    fp8_param_gather: bool = arg(
        False,
        "Keep compute parameters in FP8 and gather them in FP8.",
        status="no effect",
        reason="compute parameters stay in 16 bits, which takes more memory; the FP8 products are the same",
    )
