"""Multi-token prediction: layers that predict the tokens after the next one."""

from dataclasses import dataclass

from megatron_trainjob.args.field import TRAINING, Task, arg

_TASKS: tuple[Task, ...] = (*(task for task in TRAINING if task != "rlhf"), "export")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Multi-token prediction: layers that predict the tokens after the next one (DeepSeek-V3, GLM-4.5)."""

    mtp_num_layers: int | None = arg(
        None,
        (
            "Multi-token-prediction layers of the checkpoint that are trained too; unset or 0: none, and an export "
            "copies them as they were."
        ),
        unit="layers",
        ge=0,
        applies_to=_TASKS,
        essential=True,
        status="works",
    )
    mtp_loss_scaling_factor: float = arg(
        0.1,
        "Weight of the mean loss of these layers beside the loss of the next token.",
        ge=0,
        applies_to=_TASKS,
        status="works",
    )
