"""The process group."""

from dataclasses import dataclass

from megatron_trainjob.args.field import EVERY_TASK, arg


@dataclass(frozen=True, kw_only=True)
class BaseRuntime:
    """The process group."""

    ddp_timeout: int = arg(
        600,
        "Timeout of a collective operation of a step; data, checkpoints and exports may take longer.",
        unit="seconds",
        ge=1,
        applies_to=EVERY_TASK,
        status="works",
    )
    ignore_args_error: bool = arg(
        False,
        "Ignore unknown arguments.",
        applies_to=EVERY_TASK,
        status="no effect",
        reason="an unknown argument is always an error; spec.extraArgs accepts those newer than the schema",
    )
