"""How often and how long the validation set is evaluated."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import arg


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How often and how long the validation set is evaluated."""

    eval_iters: int = arg(
        -1,
        "Steps per evaluation; -1: the whole validation set.",
        unit="iterations",
        ge=-1,
        featured=True,
        status="works",
    )
    eval_interval: int | None = arg(
        None,
        "Training steps between two evaluations; unset: save_interval.",
        unit="steps",
        ge=1,
        featured=True,
        aliases=("eval_steps",),
        status="works",
    )
    eval_strategy: Literal["steps", "epoch", "no"] | None = arg(
        None,
        (
            'When the validation set is evaluated: each eval_interval steps, at the end of each epoch, or ("no", in '
            "quotes) never; unset: steps where eval_interval is given, else as save_strategy."
        ),
        status="works",
    )
    metric_for_best_model: str | None = arg(
        None,
        "Evaluation metric that selects the best checkpoint; unset: the loss.",
        status="works",
    )
    greater_is_better: bool | None = arg(
        None,
        "Whether a higher value of that metric is better; unset: true unless its name ends in loss.",
        status="works",
    )
    load_best_model_at_end: bool = arg(
        False,
        "At the end, export the weights of the best checkpoint instead of the last.",
        status="works",
    )
