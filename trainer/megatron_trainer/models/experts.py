"""Mixture-of-experts settings that families share."""

from __future__ import annotations

from typing import Any

from megatron_trainer.models.family import HfConfig
from megatron_trainjob.violation import Violation


def routed_settings(config: HfConfig, *, num_experts: int, moe_layers: list[int]) -> dict[str, Any]:
    """Routed experts: moe_layers has 1 for each layer of experts and 0 for each dense one."""
    return {
        "num_moe_experts": num_experts,
        "moe_router_topk": config.num_experts_per_tok,
        "moe_ffn_hidden_size": getattr(config, "moe_intermediate_size", None) or config.intermediate_size,
        "moe_layer_freq": moe_layers,
    }


def softmax_router(*, normalise_after_choice: bool) -> dict[str, Any]:
    """Softmax over all experts before the choice, or over the chosen ones after it.

    Dividing the chosen probabilities by their sum is the same as a softmax over the chosen logits alone.
    """
    return {"moe_router_score_function": "softmax", "moe_router_pre_softmax": not normalise_after_choice}


def experts_after_dense_layers(config: HfConfig) -> dict[str, Any]:
    """DeepSeek's arrangement: some dense layers, then experts beside shared ones; {} when all layers are dense."""
    num_dense = min(config.first_k_dense_replace, config.num_hidden_layers)
    moe_layers = [0] * num_dense + [1] * (config.num_hidden_layers - num_dense)
    if not any(moe_layers):
        return {}
    return {
        **routed_settings(config, num_experts=config.n_routed_experts, moe_layers=moe_layers),
        "moe_shared_expert_intermediate_size": config.moe_intermediate_size * (config.n_shared_experts or 0) or None,
        "moe_router_topk_scaling_factor": config.routed_scaling_factor,
        "moe_router_load_balancing_type": "seq_aux_loss",
    }


def sigmoid_router(config: HfConfig) -> dict[str, Any]:
    """DeepSeek-V3's routing: sigmoid scores, a bias that only chooses, the best groups of experts first."""
    groups = {"moe_router_num_groups": config.n_group, "moe_router_group_topk": config.topk_group}
    return {
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_pre_softmax": True,
        **(groups if chooses_groups(config) else {}),
    }


def chooses_groups(config: HfConfig) -> bool:
    """Whether routing is limited to some groups of experts; no setting is needed where all may be chosen."""
    return (config.topk_group or 1) < (config.n_group or 1)


def refuse_sigmoid_router(config: HfConfig) -> list[Violation]:
    """Variants of the routing that megatron-core computes otherwise."""
    found = []
    if not config.norm_topk_prob:
        message = "sigmoid routing without norm_topk_prob is not supported; megatron-core always normalises"
        found.append(refused("norm_topk_prob", False, message))
    if chooses_groups(config) and config.num_experts_per_tok // config.topk_group != 2:
        message = (
            "this model ranks groups by their two best experts, megatron-core by num_experts_per_tok // topk_group, "
            f"which is {config.num_experts_per_tok // config.topk_group} here"
        )
        found.append(refused("topk_group", config.topk_group, message))
    return found


def refused(key: str, value: object, message: str) -> Violation:
    """A setting of config.json that cannot be trained right."""
    return Violation(path=f"config.json:{key}", value=value, message=message)
