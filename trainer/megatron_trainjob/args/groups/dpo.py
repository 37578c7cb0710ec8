"""Preference training by DPO and its relatives."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import arg


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Preference training by DPO and its relatives."""

    ref_load: str | None = arg(
        None,
        "Checkpoint of the frozen reference model; unset: the model at the start of the run.",
        aliases=("mcore_ref_model",),
        applies_to=("rlhf",),
        status="not yet",
    )
    ref_adapter_load: str | None = arg(
        None,
        "Adapter checkpoint of the reference policy; unset: the model without adapters.",
        aliases=("mcore_ref_adapter",),
        applies_to=("rlhf",),
        status="not yet",
    )
    beta: float = arg(
        0.1,
        "How strongly the policy is held to the reference model; for ipo its regularisation strength.",
        gt=0,
        applies_to=("rlhf",),
        status="not yet",
    )
    rpo_alpha: float | None = arg(
        None,
        "Weight of the ordinary loss on the chosen answer, added to the preference loss; unset: off.",
        ge=0,
        applies_to=("rlhf",),
        status="not yet",
    )
    reference_free: bool = arg(
        False,
        "Ignore the reference model.",
        applies_to=("rlhf",),
        status="not yet",
    )
    label_smoothing: float = arg(
        0.0,
        "Assumed probability that a preference label is wrong.",
        unit="probability",
        ge=0,
        lt=0.5,
        applies_to=("rlhf",),
        status="not yet",
    )
    f_divergence_type: Literal["reverse_kl", "js_divergence", "alpha_divergence"] = arg(
        "reverse_kl",
        "Divergence between policy and reference.",
        applies_to=("rlhf",),
        status="not yet",
    )
    loss_type: Literal[
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_pair",
        "discopop",
        "apo_zero",
        "apo_down",
    ] = arg(
        "sigmoid",
        "Preference loss.",
        applies_to=("rlhf",),
        status="not yet",
    )
