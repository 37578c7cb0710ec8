"""How often and how long the validation set is evaluated."""

from dataclasses import dataclass

from megatron_trainjob.args.field import arg


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How often and how long the validation set is evaluated."""

    eval_iters: int = arg(
        -1,
        "Steps of one evaluation; -1: as many as the validation set holds.",
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
