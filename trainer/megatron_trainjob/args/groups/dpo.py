"""Preference training by DPO and its relatives."""

from dataclasses import dataclass
from typing import Literal

from megatron_trainjob.args.field import arg

LossType = Literal[
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
    "sigmoid_norm",
    "aot_unpaired",
    "sft",
    "kto",
    "apo_zero_unpaired",
    "infonce",
    "cosine_similarity",
    "contrastive",
    "online_contrastive",
    "pointwise_reranker",
    "listwise_reranker",
]


@dataclass(frozen=True, kw_only=True)
class Dpo:
    """Preference training by DPO and its relatives."""

    ref_load: str | None = arg(
        None,
        "Checkpoint or Hugging Face folder of the frozen reference model; unset: load, or else the model.",
        aliases=("mcore_ref_model",),
        applies_to=("rlhf",),
        status="works",
    )
    ref_adapter_load: str | None = arg(
        None,
        "Adapter checkpoint or PEFT folder of the reference policy; unset: the model without adapters.",
        aliases=("mcore_ref_adapter",),
        applies_to=("rlhf",),
        status="works",
    )
    beta: float = arg(
        0.1,
        "How strongly the policy is held to the reference model; for ipo its regularization strength.",
        gt=0,
        applies_to=("rlhf",),
        status="works",
    )
    rpo_alpha: float | None = arg(
        None,
        "Weight of the ordinary loss on the chosen answer, added to the preference loss; unset: off.",
        ge=0,
        applies_to=("rlhf",),
        status="works",
    )
    reference_free: bool = arg(
        False,
        "Use no reference model: all answers count as equally likely under it.",
        applies_to=("rlhf",),
        status="works",
    )
    label_smoothing: float = arg(
        0.0,
        "Assumed probability that a preference label is wrong.",
        unit="probability",
        ge=0,
        lt=0.5,
        applies_to=("rlhf",),
        status="works",
    )
    f_divergence_type: Literal["reverse_kl", "js_divergence", "alpha_divergence", "forward_kl"] = arg(
        "reverse_kl",
        "Divergence between policy and reference.",
        applies_to=("rlhf",),
        status="works",
    )
    loss_type: LossType = arg(
        "sigmoid",
        "Preference loss; rlhf_type kto has its own, as have task_type embedding (infonce) and rerankers (pointwise).",
        applies_to=("rlhf", "sft"),
        essential=True,
        status="works",
    )
    loss_types: tuple[LossType, ...] = arg(
        (),
        "Several preference losses, whose sum is minimized, in place of loss_type; sft is the ordinary loss.",
        applies_to=("rlhf",),
        essential=True,
        status="works",
    )
    loss_weights: tuple[float, ...] = arg(
        (),
        "Weight of each of loss_types; unset: 1.",
        ge=0,
        applies_to=("rlhf",),
        status="works",
    )
    f_alpha_divergence_coef: float = arg(
        0.5,
        "Coefficient of alpha_divergence: 0 is the forward KL, 1 the reverse KL.",
        applies_to=("rlhf",),
        status="works",
    )
    discopop_tau: float = arg(
        0.05,
        "Temperature of the blend of discopop's two losses.",
        gt=0,
        applies_to=("rlhf",),
        status="works",
    )
    precompute_ref_log_probs: bool = arg(
        False,
        "Compute the reference log-probabilities before training and keep them on disk: no second model in memory.",
        applies_to=("rlhf",),
        status="works",
    )
