"""Freezing parts of the model in full training."""

from dataclasses import dataclass

from megatron_trainjob.args.field import arg


@dataclass(frozen=True, kw_only=True)
class TunerFull:
    """Freezing parts of the model in full training."""

    freeze_parameters: tuple[str, ...] = arg(
        (),
        "Parameters to freeze, by prefix of their names.",
        status="works",
    )
    freeze_parameters_regex: str | None = arg(
        None,
        "Parameters to freeze, by a regular expression found in their names.",
        status="works",
    )
    freeze_parameters_ratio: float = arg(
        0.0,
        ("Fraction of the parameters to freeze, counted from the bottom; 1: all, for use with trainable_parameters."),
        unit="fraction",
        ge=0,
        le=1,
        status="works",
    )
    trainable_parameters: tuple[str, ...] = arg(
        (),
        "Frozen parameters to train after all, by prefix of their names.",
        status="works",
    )
    trainable_parameters_regex: str | None = arg(
        None,
        "Frozen parameters to train after all, by a regular expression found in their names.",
        status="works",
    )
